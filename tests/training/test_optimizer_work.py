"""What live optimizers multiply, by what FlopCounterMode counts in their steps."""

from types import SimpleNamespace

import pytest
import torch
from optimizer_steps import SHAPES, counted, weights

from bridge.flops.shapes import ConfigError
from bridge.training.optimizer_work import multiplies_matrices, step_flops


def test_torchs_muon_beside_adam():
    groups = [{"params": weights(), "ns_steps": 2}, {"params": weights(SHAPES[:1])}]
    muon, adam = torch.optim.Muon(groups), torch.optim.AdamW(weights())
    both = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=muon), SimpleNamespace(optimizer=adam)])
    assert step_flops(both) == {"bf16": counted(muon.step)}
    assert multiplies_matrices(both)
    assert step_flops(adam) == {}
    assert counted(adam.step) == 0
    assert not multiplies_matrices(adam)
    assert not multiplies_matrices(None)


def test_names_that_hold_others():
    class AdamOptimizer(torch.optim.SGD):
        pass

    assert not multiplies_matrices(AdamOptimizer(weights()))


def test_an_optimizer_that_nobody_knows():
    class SingleDeviceMuon(torch.optim.SGD):
        pass

    with pytest.raises(ConfigError, match="SingleDeviceMuon: the matrices that this optimizer multiplies are unknown"):
        step_flops(SingleDeviceMuon(weights()))


@pytest.mark.parametrize("options", [{}, {"use_kl_shampoo": True}, {"use_eigh": True}])
def test_soap(options):
    soap = pytest.importorskip("emerging_optimizers.soap")
    if not hasattr(soap, "SOAP"):
        pytest.skip("SOAP of the first release runs with CUDA alone")
    optimizer = soap.SOAP(weights(), lr=1e-3, **options)
    optimizer.step()
    assert step_flops(optimizer) == {"tf32": counted(optimizer.step)}


def test_muon_of_emerging_optimizers():
    orthogonalized = pytest.importorskip("emerging_optimizers.orthogonalized_optimizers")
    optimizer = orthogonalized.Muon(weights(), num_ns_steps=10)
    assert step_flops(optimizer) == {"bf16": counted(optimizer.step)}


def test_muon_of_megatron_core():
    """Its own step on this rank, whole matrices; queries, keys and values apart: of 24 rows a group 16, 4 and 4."""
    pytest.importorskip("emerging_optimizers.orthogonalized_optimizers", reason="emerging-optimizers is not installed")
    from bridge.training.engine.initialize import prepare_libraries

    prepare_libraries()
    muon = pytest.importorskip("megatron.core.optimizer.muon")
    if not muon.HAVE_EMERGING_OPTIMIZERS:
        pytest.skip("this release of emerging-optimizers is not the one of this megatron-core")
    shapes = (*SHAPES, (48, 32))
    plain = muon.TensorParallelMuon(weights(shapes), num_ns_steps=10)
    assert step_flops(plain) == {"bf16": counted(plain.step)}
    apart = muon.TensorParallelMuon(
        weights(shapes), split_qkv=True, is_qkv_fn=lambda weight: weight.shape == (48, 32), qkv_split_shapes=(16, 4, 4)
    )
    assert step_flops(apart) == {"bf16": counted(apart.step)}
    # By hand: five rounds on each, 2 m^2 n + m^3 multiply-accumulates with m the smaller side.
    sides = [(64, 64), (64, 160), (64, 320), (7, 33), (32, 32), (8, 32), (8, 32)]
    assert step_flops(apart)["bf16"] == 2 * 5 * sum(2 * m * m * n + m**3 for m, n in sides)
