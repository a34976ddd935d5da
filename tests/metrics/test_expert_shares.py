"""What fuller experts are of a rank's work, by hand."""

from __future__ import annotations

import pytest

from bridge.flops import compile_plan
from bridge.flops.routed import assignment_flops, expert_places
from bridge.metrics.expert_shares import shares_of
from bridge.metrics.experts import LOADS
from bridge.metrics.instruments import Summed
from bridge.metrics.place import Place
from bridge.metrics.stragglers import ComputeTime
from bridge.metrics.throughput import Work
from bridge.metrics.vector import Slice, VectorLayout

MODEL = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 24,
    "gated_linear_unit": True,
    "moe_layer_freq": [0, 1, 1, 1],
}
ROW = 3 * 2 * 3 * 32 * 24
LAYERS = [[30, 20, 10, 4], [16, 16, 16, 16], [64, 0, 0, 0]]


def factor(stands, *, work=None, data=1.0, pipeline=1, even=False, model=MODEL):
    place = Place(world=4, expert=2, pipeline=pipeline)
    plan = compile_plan(model, "exact")
    shares = shares_of(plan, place, even)
    layout = VectorLayout(plan.statistics, slices=(Slice(LOADS, 12),))
    sums = layout.zeros()
    layout.add(sums, LOADS, sum(LAYERS, []))
    summed = Summed(layout, place, sums, sums, sums, (), price=lambda vector: work)
    return shares.factor(summed, work or Work(steps=1, tokens=1, flops=400 * ROW), {"expert": 0, "pipeline": 0, **stands}, data)


def test_layers_and_what_an_assignment_costs():
    plan = compile_plan(MODEL, "exact")
    assert assignment_flops(plan) == [ROW] * 3
    assert expert_places(plan) == [1, 2, 3]


def test_of_all_layers():
    """Of 192 assignments the first rank's experts have 50 + 32 + 64; experts are 192 of 400 parts of the work."""
    assert factor({"expert": 0}) == pytest.approx(1 + 192 / 400 * (146 / 96 - 1))
    assert factor({"expert": 1}) == pytest.approx(1 + 192 / 400 * (46 / 96 - 1))


def test_what_longer_data_explains_is_not_explained_twice():
    assert factor({}, data=1.25) == pytest.approx(1 + 192 / 400 * (146 / 96 / 1.25 - 1))


def test_of_a_pipeline_stages_own_layers():
    """The first stage has a dense layer and one of experts, the second the other two."""
    work = Work(steps=1, tokens=1, flops=400 * ROW, stage_work=[100 * ROW, 300 * ROW])
    assert factor({"pipeline": 0}, work=work, pipeline=2) == pytest.approx(1 + 64 / 100 * (50 / 32 - 1))
    assert factor({"pipeline": 1}, work=work, pipeline=2) == pytest.approx(1 + 128 / 300 * (96 / 64 - 1))


def test_filled_up_experts_have_the_same_work():
    assert factor({}, even=True) == 1.0


def test_unknown_stays_unknown():
    assert factor({}, work=Work(steps=1, tokens=1, flops=None)) is None
    plan = compile_plan(MODEL, "exact")
    assert shares_of(plan, Place()) is None
    assert shares_of(plan, Place(expert=2, pipeline=3)) is None  # four layers on three stages
    time = ComputeTime(mean=1, slowest=2, rank=0, experts=None)
    assert (time.work, time.device, time.cause) == (None, None, None)


def test_fuller_experts_are_a_cause_with_their_factor():
    time = ComputeTime(mean=1.0, slowest=1.6, rank=0, place={"expert": 0}, experts=1.5)
    assert (time.cause, time.work, time.device) == ("fuller experts", 1.5, 1.6 / 1.5)
    assert time.sentence() == (
        "rank 0 (expert 0) computes 1.60 x as long as the mean rank: fuller experts "
        "(data 1.00 x, stage 1.00 x, experts 1.50 x, device 1.07 x)"
    )
