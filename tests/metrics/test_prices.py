"""Price lists: from them and a batch's statistics alone come a plan's FLOPs, in every convention."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import AUDIO, RECOMPUTED

from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.metrics.prices import STATISTIC, price_lists, priced, prices_of

MODEL = {**RECOMPUTED, "window_size": (4, 0), "window_attn_skip_freq": 2}
PLANS = {name: compile_plan(MODEL, name) for name in CONVENTIONS}


def statistics(plan, lengths):
    return dict(zip((one.name for one in plan.statistics), plan.measure(lengths), strict=True))


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4))
def test_a_list_prices_a_batch_as_its_plan_does(convention, lengths):
    plan = PLANS[convention]
    for passes in ("training", "hardware", "forward"):
        kept = json.loads(json.dumps(prices_of(plan, passes)))  # as a run keeps it
        found = priced(kept, statistics(plan, lengths))
        assert found == {name: flops for name, flops in plan.breakdown(lengths, passes=passes).items() if flops}


def test_prices_by_hand():
    """Two FLOPs a multiply-accumulate, three passes: the output layer is 16 x 32, a pair costs two products of 16."""
    plan = compile_plan({key: value for key, value in MODEL.items() if key[:6] not in ("window", "recomp")}, "exact")
    prices = prices_of(plan)
    assert prices["output_layer"] == {"tokens": 6 * 16 * 32}
    assert prices["core_attention"] == {"causal_pairs": 2 * 6 * 2 * 16}
    half = prices_of(PLANS["megatron"])["core_attention"]  # of the one layer that has no window
    assert half["squared_tokens"] == 6 * 2 * 16 // 2


def test_a_fraction_is_a_text_that_is_read_as_it_was_written():
    assert priced({"a": {"tokens": "1/3", "images": 2}, "b": {}}, {"tokens": 7, "images": 5}) == {"a": Fraction(37, 3), "b": 0}


def test_a_missing_statistic_is_no_zero():
    with pytest.raises(KeyError, match="causal_pairs"):
        priced({"core_attention": {"causal_pairs": 2}}, {"tokens": 5})


def test_lists_of_several_conventions_and_what_is_unknown():
    unknown = compile_plan(MODEL, "palm")
    unknown.hardware_unknown = ("its kernels are unknown",)
    lists = price_lists([PLANS["exact"], unknown])
    assert lists == {
        "exact": {"components": prices_of(PLANS["exact"]), "hardware": prices_of(PLANS["exact"], "hardware")},
        "palm": {"components": prices_of(unknown)},
    }
    assert lists["exact"]["hardware"] != lists["exact"]["components"]


def test_what_batches_are_not_read_for_has_no_price():
    prices = prices_of(compile_plan(MODEL | {"audio_config": AUDIO}, "exact"))
    assert prices == prices_of(PLANS["exact"])
    assert STATISTIC == "throughput/statistics/"
