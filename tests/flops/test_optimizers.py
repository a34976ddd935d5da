"""Optimizers that multiply matrices: their steps under FlopCounterMode, and what megatron-core gives them."""

import pytest
import torch
from optimizer_steps import SHAPES, counted, weights

from bridge.flops import ConfigError, compile_plan
from bridge.flops.optimizers import MatrixOptimizer, matrices, optimizer_flops

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 160,
         "vocab_size": 96, "gated_linear_unit": True, "share_embeddings_and_output_weights": False}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 5])
def test_torchs_muon(steps):
    optimizer = torch.optim.Muon(weights(), ns_steps=steps)
    assert MatrixOptimizer("muon", steps=steps).flops(SHAPES) == counted(optimizer.step)


@pytest.mark.parametrize("options", [{}, {"use_kl_shampoo": True}, {"use_eigh": True}, {"power_iter_steps": 3}])
def test_soap(options):
    """From its second step on: the first has an eigendecomposition for the power iteration."""
    soap = pytest.importorskip("emerging_optimizers.soap")
    optimizer = soap.SOAP(weights(), lr=1e-3, **options)
    optimizer.step()
    rounds = 0 if options.get("use_eigh") else options.get("power_iter_steps", 1)
    how = MatrixOptimizer("soap", power_steps=rounds, kl=options.get("use_kl_shampoo", False))
    assert how.flops(SHAPES) == counted(optimizer.step)


def test_shampoo():
    """As it is published (algorithm 1): two preconditioners, and the gradient between their roots."""

    def step():
        for weight in weights():
            gradient, rows, columns = weight.grad, *weight.shape
            left, right = torch.eye(rows) + gradient @ gradient.T, torch.eye(columns) + gradient.T @ gradient
            _ = left @ gradient @ right  # any matrices of these sizes

    assert MatrixOptimizer("shampoo").flops(SHAPES) == counted(step)


@pytest.mark.parametrize(("kl", "rounds"), [(False, 0), (False, 1), (False, 3), (True, 1)])
def test_soap_as_it_is_published(kl, rounds):
    """The products of a later step of its algorithm 3, with KL-Shampoo's preconditioners too, on any matrices of these sizes."""

    def inverse(factor, basis):
        return basis / (basis * (factor @ basis)).sum(0) @ basis.T

    def step():
        for weight in weights():
            gradient, old = weight.grad, [torch.eye(side) for side in weight.shape]
            between = [inverse(basis, basis) for basis in reversed(old)] if kl else [None, None]
            left = gradient @ between[0] @ gradient.T if kl else gradient @ gradient.T
            right = gradient.T @ between[1] @ gradient if kl else gradient.T @ gradient
            moment, new = old[0] @ gradient @ old[1].T, old
            for _ in range(1 + rounds):  # the order of the eigenvalues, then power iteration
                new = [factor @ basis for factor, basis in zip((left, right), new, strict=True)]
            _ = new[0].T @ moment @ new[1]
            update = new[0].T @ gradient @ new[1]
            _ = new[0] @ update @ new[1].T

    assert MatrixOptimizer("soap", power_steps=rounds, kl=kl).flops(SHAPES) == counted(step)


def test_by_hand():
    """Three iterations on 4 x 10: 16 x 10 twice and 64, two FLOPs each."""
    assert MatrixOptimizer("muon", steps=3).flops([(4, 10)]) == 3 * 2 * (2 * 160 + 64) == 2304
    assert MatrixOptimizer("muon", steps=3).flops([(10, 4)] * 5) == 5 * 2304


def test_what_megatron_core_gives_it():
    """Two-dimensional weights but embeddings and logits; queries, keys and values apart."""
    layer = [(64, 64), (32, 64), (32, 64), (64, 64), (320, 64), (64, 160)]
    plan = compile_plan(MODEL)
    assert matrices(plan) == 2 * layer
    assert matrices(plan, split_qkv=False) == 2 * [(128, 64), *layer[3:]]
    options = {"optimizer": "muon", "muon_num_ns_steps": 3}
    assert optimizer_flops(plan, options) == MatrixOptimizer("muon", steps=3).flops(2 * layer)
    frozen = compile_plan({"model": MODEL, "peft": {"kind": "lora", "dim": 8, "target_modules": ["linear_proj"]}})
    assert matrices(frozen) == 2 * [(8, 64), (64, 8)]


def test_experts_are_matrices_of_their_own():
    moe = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
    layer = [(64, 64), (32, 64), (32, 64), (64, 64), (4, 64), *4 * [(64, 64)], *4 * [(64, 32)]]
    assert matrices(compile_plan(MODEL | moe)) == 2 * layer


def test_what_is_not_known_is_named_and_adam_multiplies_nothing():
    plan = compile_plan(MODEL)
    assert optimizer_flops(plan, {}) == optimizer_flops(plan, {"optimizer": "adam"}) == 0
    with pytest.raises(ConfigError, match="optimizer='psgd_pro': the matrices that it multiplies are unknown"):
        optimizer_flops(plan, {"optimizer": "psgd_pro"})
