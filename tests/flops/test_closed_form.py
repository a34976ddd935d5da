"""The closed form of a plan equals its general path, as integers and in what it leaves to it."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.closed_form import ClosedForm, closed_form
from bridge.flops.moments import Moments
from bridge.flops.statistics import Statistic
from bridge.training.utils.flop_utils import num_floating_point_operations

MODELS = ("llama3-8b", "gemma3-4b", "deepseek-v3", "nemotron-h-8b", "qwen2.5-vl-7b", "gpt-oss-20b")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("convention", ["megatron", "exact"])
def test_equals_the_plan(model, convention):
    cfg = load_recipe(model)
    plan = compile_plan(cfg, convention=convention)
    form, numbers = plan.text_form(), random.Random(model)
    assert form is not None
    for _ in range(200):
        lengths = [numbers.choice([numbers.randint(1, 200), numbers.randint(1, 20_000)]) for _ in range(numbers.randint(1, 9))]
        if numbers.random() < 0.3:
            lengths = [numbers.choice([127, 128, 129, 1023, 1024, 1025])] * len(lengths)
        sums = len(lengths), sum(lengths), sum(length**2 for length in lengths)
        general = plan.evaluate(plan.measure_moments(Moments.of(*sums, 4096)))
        assert form.flops(*sums) == (None if isinstance(general, Fraction) else general)
        priced = num_floating_point_operations(cfg, *sums, convention=convention)
        assert (type(priced), priced) == (type(general), general)


def test_by_hand():
    window, images = Statistic("window_pairs", sizes=(4,)), Statistic("square", "images")
    form = closed_form((Statistic("length"), Statistic("causal_pairs"), window, images), (3, 2, 10, 999), 1)
    # Beyond the window: half of 4 x 3 less than 4 per token; below it half of the squares.
    assert form.flops(2, 20, 202) == 3 * 20 + (202 + 20) + 10 * (4 * 20 - 6 * 2)
    assert form.flops(2, 8, 34) == 3 * 8 + (34 + 8) + 10 * 17
    assert ClosedForm((), ((0, 1, 0),), 2).flops(1, 3, 9) is None  # one and a half


def test_what_is_not_linear_has_none():
    assert closed_form((Statistic("chunk_pairs", sizes=(8,)),), (1,), 1) is None
    assert closed_form((Statistic("length", "encoder"),), (1,), 1) is None
    assert closed_form((Statistic("chunk_pairs", sizes=(8,)),), (0,), 1).flops(1, 2, 4) == 0
