"""Each record is what the framework's own code does; the oracle holds them on whole models, this file one matmul at a time."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bridge.flops import ConfigError, compile_plan
from bridge.flops.frameworks import (
    FRAMEWORKS,
    MEGATRON,
    TRANSFORMERS,
    TRANSFORMERS_DENSE_EXPERTS,
    TRANSFORMERS_FUSED,
    Framework,
    get,
)

NAMES = ["megatron"] + [f"transformers{kind}{how}" for how in ("", "_reentrant") for kind in ("", "_fused", "_dense_experts")]


def differing(one: Framework, other: Framework) -> set[str]:
    return {item.name for item in fields(Framework) if getattr(one, item.name) != getattr(other, item.name)} - {"name"}


def test_every_record_has_its_name():
    assert list(FRAMEWORKS) == NAMES
    assert [get(name).name for name in NAMES] == NAMES
    assert get("megatron") is MEGATRON
    assert len(set(FRAMEWORKS.values())) == len(NAMES)


def test_what_is_derived_differs_in_one_thing():
    assert differing(TRANSFORMERS, TRANSFORMERS_FUSED) == {"fused"}
    assert differing(TRANSFORMERS, TRANSFORMERS_DENSE_EXPERTS) == {"dense_experts"}
    for name in NAMES:
        if name.endswith("_reentrant"):
            assert differing(get(name), get(name.removesuffix("_reentrant"))) == {"stops_early"}
            assert not get(name).stops_early


@pytest.mark.parametrize("name", ["Megatron", "", "jax", None])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(ConfigError) as error:
        get(name)
    assert str(error.value) == f"framework={name!r} is not known; choose one of {', '.join(NAMES)}"


# ---- as it runs ------------------------------------------------------------------------------------------------------

ROWS, K, N = 3, 4, 5
ONE = 2 * ROWS * K * N


def matmuls(run, *, input_trains: bool, weight_trains: bool) -> int:
    """How many matmuls of one size a linear layer and its backward pass run."""
    x, weight = torch.rand(ROWS, K, requires_grad=input_trains), torch.rand(N, K, requires_grad=weight_trains)
    with FlopCounterMode(display=False) as counter:
        run(x, weight).sum().backward()
    return counter.get_total_flops() // ONE


@pytest.fixture(scope="module")
def megatron_linear():
    layers = pytest.importorskip("megatron.core.tensor_parallel.layers")
    function = layers.LinearWithGradAccumulationAndAsyncCommunication
    return lambda x, weight: function.apply(x, weight, None, False, False, False, None, 0, None)


def test_the_gradient_of_an_input_that_needs_none(megatron_linear):
    """A trained weight behind frozen layers: megatron-core computes both gradients, autograd the weight's alone."""
    only_the_weight = {"input_trains": False, "weight_trains": True}
    assert matmuls(functional.linear, **only_the_weight) == 2 + TRANSFORMERS.dgrad_with_wgrad
    assert matmuls(megatron_linear, **only_the_weight) == 2 + MEGATRON.dgrad_with_wgrad == 3


def test_the_gradient_of_a_router_that_is_frozen(monkeypatch):
    moe_utils = pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)  # left undefined without Transformer Engine
    frozen = {"input_trains": True, "weight_trains": False}

    def router(x, weight):
        return moe_utils.RouterGatingLinearFunction.apply(x, weight, None, torch.float32)

    assert matmuls(functional.linear, **frozen) == 2 + TRANSFORMERS.router_backward_is_whole
    assert matmuls(router, **frozen) == 2 + MEGATRON.router_backward_is_whole == 3


#: Two layers of one head of 4, an MLP of 8 without a gate, in full recomputation.
RECOMPUTED = {
    "num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 16,
    "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1,
}  # fmt: skip


def test_the_second_run_of_a_layer_stops_early():
    """torch's newer checkpoint stops before the last matmul, whose result is not kept; the reentrant one runs it again."""
    up, down = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 4, bias=False)
    last = 2 * ROWS * 8 * 4

    def executed(reentrant):
        with FlopCounterMode(display=False) as counter:
            x = torch.rand(ROWS, 4, requires_grad=True)
            checkpoint(lambda x: down(up(x)), x, use_reentrant=reentrant).sum().backward()
        return counter.get_total_flops()

    def counted(framework):
        return compile_plan(RECOMPUTED, "executed", framework=framework).flops([ROWS], passes="hardware")

    assert executed(True) - executed(False) == last
    assert counted("transformers_reentrant") - counted("transformers") == 2 * last
