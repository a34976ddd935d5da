"""Experts as they were routed, in the meter: priced exactly, on the device without reading it back, in totals and checkpoints."""

from __future__ import annotations

import pytest
import torch

from bridge.flops import compile_plan
from bridge.flops.routed import routed
from bridge.metrics import meter as module
from bridge.metrics.experts import ExpertLoads, Experts
from bridge.metrics.instruments import Instruments
from bridge.metrics.meter import Meter
from bridge.metrics.place import Place
from bridge.metrics.reduction import PendingSum
from bridge.metrics.throughput import throughput

HIDDEN, FFN, TOKENS = 32, 24, 64
MODEL = {
    "num_layers": 2,
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": FFN,
    "gated_linear_unit": True,
}
#: All passes of one row of an expert.
ROW = 3 * 2 * 3 * HIDDEN * FFN
USEFUL = torch.tensor([[30, 20, 10, 4], [16, 16, 16, 16]])
ROWS = torch.tensor([[32, 32, 32, 32], [16, 16, 16, 16]])


class OnDevice(torch.Tensor):
    """A tensor as if on an accelerator: reading it back is an error."""

    is_cpu = False

    def _sync(self, *args, **kwargs):
        raise AssertionError("read back from the device")

    numpy = item = tolist = cpu = __bool__ = __int__ = __float__ = __index__ = nonzero = _sync


class Given:
    """Routers that say the same after each step."""

    layers, experts = 2, 4

    def take(self):
        return 2 * 2 * TOKENS, USEFUL.as_subclass(OnDevice), ROWS.as_subclass(OnDevice)

    def close(self):
        pass


@pytest.fixture
def meter(monkeypatch):
    class AtTheEnd(PendingSum):
        """May read the device."""

        def __init__(self, limbs, device_limbs=None, **options):
            super().__init__(limbs, None if device_limbs is None else device_limbs.as_subclass(torch.Tensor))

    monkeypatch.setattr(module, "PendingSum", AtTheEnd)
    plan = compile_plan(MODEL, "exact")
    return Meter(routed(plan), Place(expert=2), instruments=Instruments([Experts(Given(), plan)]))


def test_what_was_routed_is_priced(meter):
    for _ in range(3):
        meter.add_batch({"tokens": torch.zeros(1, TOKENS)})
        meter.end_step()
    meter.launch(3)
    interval = meter.poll(wait=True).interval
    nominal = compile_plan(MODEL, "exact").flops([TOKENS])
    dropped, padded = 2 * 2 * TOKENS - 128, 192 - 128
    assert interval.total_flops == 3 * (nominal - dropped * ROW)
    assert interval.timed.flops == 2 * (nominal - dropped * ROW)
    assert interval.timed.hardware_flops == 2 * (nominal - (dropped - padded) * ROW)
    assert sum(interval.components.values()) == interval.total_flops
    found = throughput(interval)
    assert found["throughput/dropped_tokens_fraction"] == 0.5
    assert found["throughput/imbalance/experts/layer_0"] == found["throughput/imbalance/experts"] == 30 * 4 / 64
    assert found["throughput/imbalance/experts/layer_1"] == 1
    # Two ranks of two experts: 50 and 14, 32 and 32.
    assert found["throughput/imbalance/expert_ranks"] == (50 + 32) * 2 / 128
    assert found["throughput/tflops/device_nominal"] == pytest.approx(2 * nominal / interval.seconds / 1e12)


def test_totals_go_on_from_a_checkpoint(meter):
    meter.add_batch({"tokens": torch.zeros(1, TOKENS)})
    meter.end_step()
    meter.settle()
    state = meter.totals.state_dict()
    assert state["statistics"]["assignments_of_routed[0]"] == 64
    assert state["statistics"]["padding_of_routed[0]"] == 64
    other = Meter(meter.plan, Place(), instruments=Instruments([Experts(Given())]))
    assert other.totals.load_state_dict(state) is None
    assert other.totals.flops == state["total_flops"]


def test_experts_of_which_none_was_asked_and_layers_that_got_nothing():
    loads = ExpertLoads(requested=8, layers=[[0, 0], [3, 1]])
    assert loads.metrics(None) == {
        "throughput/dropped_tokens_fraction": 0.5,
        "throughput/imbalance/experts": 1.5,
        "throughput/imbalance/experts/layer_1": 1.5,
    }
