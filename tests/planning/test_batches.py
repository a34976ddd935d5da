"""Batches of equal sequences: what measuring them would give, by the rules of the public function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.planning.batches import equal_sequences
from bridge.training.utils.flop_utils import num_floating_point_operations

MODEL = {"num_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 24, "vocab_size": 40}
CHUNKS = MODEL | {"attention_chunk_size": 6, "no_rope_freq": 3}
VISION = MODEL | {"vision_config": {"depth": 1, "hidden_size": 8, "out_hidden_size": 16, "patch_size": 2}}
PLANS = {name: compile_plan(MODEL, name) for name in CONVENTIONS}


@given(st.integers(1, 9), st.integers(1, 300))
def test_they_are_measured_one_by_one_in_every_convention(number, length):
    for plan in PLANS.values():
        assert equal_sequences(plan, number, length) == plan.measure([length] * number)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 40])
def test_chunks_are_counted_and_not_estimated(length):
    plan = compile_plan(CHUNKS, "exact")
    assert equal_sequences(plan, 3, length) == plan.measure([length] * 3)


def test_no_sequences_are_nothing_and_images_come_on_top():
    plan = compile_plan(VISION, "exact")
    text, images = plan.measure([20, 20]), plan.measure([], [16, 64])
    assert equal_sequences(plan, 2, 20, [16, 64]) == plan.measure([20, 20], [16, 64])
    assert equal_sequences(plan, 2, 20) == text
    assert equal_sequences(plan, 0, 20, [16, 64]) == images
    assert [one for one in images if one]


@pytest.mark.parametrize("length", [3, 4, 5, 100])
def test_windows_follow_the_rule_of_the_public_function(length):
    """Also where that is an estimate: a sequence no longer than the window has half its square."""
    window = MODEL | {"window_size": (3, 0), "seq_length": length}
    plan = compile_plan(window)
    assert plan.evaluate(equal_sequences(plan, 5, length)) == num_floating_point_operations(window, 5)
