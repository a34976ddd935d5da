"""From count, sum and sum of squares to statistics: exact where they can be, by Megatron's rules where not."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.moments import NOTHING, Moments, rule
from bridge.flops.statistics import Statistic

#: Two sequences of 3 and one of 9 tokens: mean 5; a token finds itself in 99/15 = 6.6.
MIXED = Moments.of(3, 15, 99)
EQUAL = Moments.of(2, 12)


def estimate(kind: str, moments: Moments, *sizes: int) -> object:
    return rule(Statistic(kind, sizes=sizes))(moments, *sizes)


def test_sums_are_taken_as_they_are():
    assert [estimate(kind, MIXED) for kind in ("count", "length", "square", "causal_pairs")] == [3, 15, 99, 57]


def test_equal_sequences_are_exact():
    assert EQUAL == (2, 12, 72, 6)
    for kind, *sizes in (
        ("causal_pairs",), ("topk_pairs", 4), ("topk_pairs", 6), ("topk_pairs", 9), ("window_pairs", 4), ("chunk_pairs", 4),
        ("compressed_pairs", 4), ("doubled_window_area", 4), ("quotient", 4),
    ):  # fmt: skip
        assert estimate(kind, EQUAL, *sizes) == Statistic(kind, sizes=tuple(sizes)).sum([6, 6]), (kind, sizes)


def test_a_mean_between_lengths_lies_on_a_straight_line():
    # Chunks of 4: 4 tokens have 10 pairs, 5 have 11; two sequences of 9 tokens together have a mean of 4.5.
    assert estimate("chunk_pairs", Moments.of(2, 9), 4) == 2 * Fraction(21, 2)


def test_windows_go_by_the_mean_length():
    assert estimate("window_pairs", MIXED, 4) == 15 * 4 - 3 * 6
    # Wider than the mean, half of the square: Megatron's causal attention.
    assert estimate("window_pairs", MIXED, 5) == estimate("window_pairs", MIXED, 6) == Fraction(99, 2)


def test_a_selection_goes_by_the_length_a_token_finds_itself_in():
    # 6.6 or more: nothing is left out, and every token sees itself.
    assert estimate("topk_pairs", MIXED, 7) == (99 + 15) // 2 == Statistic("causal_pairs").sum([3, 3, 9])
    # below: 15 tokens of 4 keys, less the triangle at the start of 15 / 6.6 sequences
    assert estimate("topk_pairs", MIXED, 4) == 60 - Fraction(15 * 15 * 6, 99)
    assert estimate("topk_pairs", EQUAL, 6) == 2 * 21


def test_deepseek_v32_below_its_top_k_by_hand():
    """1,024 tokens, fewer than the 2,048 keys that the indexer selects: each token sees all before it, and itself."""
    plan = compile_plan(load_recipe("deepseek-v3.2", validate=False), "megatron")
    vector = plan.measure_moments(Moments.of(1, 1024, 1024 * 1024, 1024))
    pairs = 1024 * 1025 // 2
    assert vector[plan.statistics.index(Statistic("topk_pairs", sizes=(2048,)))] == pairs
    assert plan.evaluate(vector) == 260_911_813_558_272
    # Half a square instead would lose 512 pairs in 61 layers: of the core (128 heads, 576 + 512 wide, three passes), of the
    # teacher that the indexer learns from (forward), and of its own backward passes (64 heads, 128 wide, and a weight each).
    lost = 512 * 61 * (6 * 128 * (576 + 512) + 2 * 128 * 576 + 2 * 2 * 64 * (128 + 1))
    assert plan.evaluate(vector) - lost == 260_880_079_847_424


def test_nothing_is_nothing():
    assert Moments.of(0, 0) == NOTHING
    kinds = (("window_pairs", 4), ("topk_pairs", 4), ("chunk_pairs", 4), ("quotient", 4), ("causal_pairs",))
    assert [estimate(kind, NOTHING, *sizes) for kind, *sizes in kinds] == [0] * 5


@pytest.mark.parametrize(("nominal", "t"), [(64, 8), (16, 4)])
def test_deepseek_v4_goes_by_the_nominal_length(nominal, t):
    """2 t (1 - 4 t / (2 nominal)) per token, with t = min(8, nominal // 4)."""
    found = estimate("doubled_compressed_topk_area", Moments(2, 20, 200, nominal), 4, 8)
    assert found == 20 * 2 * t * (1 - Fraction(4 * t, 2 * nominal))


def test_images_beside_sequences_of_one_length():
    plan = compile_plan(load_recipe("qwen2.5-vl-7b", validate=False), "exact")
    found = plan.measure_moments(Moments.of(2, 20, 200), images=Moments.of(1, 64, 4096))
    names = [statistic.name for statistic in plan.statistics]
    measured = dict(zip(names, plan.measure([10, 10], [64]), strict=True))
    assert {name: value for name, value in zip(names, found, strict=True) if "[" not in name} == {
        name: value for name, value in measured.items() if "[" not in name
    }


def test_squares_that_are_no_whole_number_are_taken_as_they_are():
    assert Moments.of(2, 3, 4.5) == (2, 3, Fraction(9, 2), Fraction(3, 2))
