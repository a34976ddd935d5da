"""Decoding with a draft: tokens a pass by the published formula, FLOPs and bytes of each pass by the plans."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from bridge.flops import ConfigError
from bridge.planning.inference import InferencePlan, MemoryTraffic
from bridge.planning.speculation import speculate, tokens_per_pass

LARGE = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128}
SMALL = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128}


def test_tokens_a_pass() -> None:
    assert tokens_per_pass(Fraction(1), 4) == 5
    assert tokens_per_pass(Fraction(0), 4) == 1
    # (1 - a^(g + 1)) / (1 - a), arXiv:2211.17192, equation 1
    a, g = Fraction(4, 5), 4
    assert tokens_per_pass(a, g) == (1 - a ** (g + 1)) / (1 - a)
    draws = random.Random(0)
    drawn = [next((i for i in range(g) if draws.random() >= a), g) + 1 for _ in range(100_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(float(tokens_per_pass(a, g)), rel=0.01)


def test_passes() -> None:
    target, draft = InferencePlan(LARGE), InferencePlan(SMALL)
    found = speculate(target, draft, 10, 11, proposals=4, acceptance=1)
    assert (found.tokens_per_pass, found.passes) == (5, 2)
    assert found.target == (target.decode(10, 5), target.decode(15, 5))
    assert found.draft == (draft.decode(10, 4), draft.decode(15, 4))
    assert found.flops == sum(found.target) + sum(found.draft)
    # bf16: weights once a pass with five rows of the embedding, the cache that its first token sees, five new entries.
    kept = 2 * 4 * 2 * 64
    assert found.target_bytes[0] == 2 * target.weight_entries(5) + kept * (11 + 5)
    small = 2 * 1 * 2 * 32
    assert found.draft_bytes[0] == sum(2 * draft.weight_entries(1) + small * (11 + number + 1) for number in range(4))
    both = sum(found.target_bytes) + sum(found.draft_bytes)
    assert found.time(1e30, 1e9) == pytest.approx(both / 1e9)
    assert found.time(1e9, 1e30) == pytest.approx(float(found.flops) / 1e9)


def test_a_draft_that_is_never_right_costs_its_own_work() -> None:
    target, draft = InferencePlan(LARGE), InferencePlan(SMALL)
    found = speculate(target, draft, 10, 4, proposals=2, acceptance=0, batch_size=3)
    assert found.passes == 3
    assert found.target == tuple(3 * target.decode(start, 3) for start in (10, 11, 12))


def test_narrow_numbers() -> None:
    target, draft = InferencePlan(LARGE), InferencePlan(SMALL)
    wide, narrow = (
        speculate(target, draft, 10, 4, proposals=2, acceptance=0.5, memory=MemoryTraffic(weight=size, cache=size))
        for size in (2, 1)
    )
    assert sum(wide.target_bytes) == 2 * sum(narrow.target_bytes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acceptance": 1.5}, "acceptance=1.5 must be a fraction of the proposals"),
        ({"proposals": 0}, "proposals=0 must be a positive integer"),
    ],
)
def test_what_cannot_be(options: dict[str, float], words: str) -> None:
    plan = InferencePlan(SMALL)
    with pytest.raises(ConfigError, match=words):
        speculate(plan, plan, 10, 4, **{"proposals": 2, "acceptance": 0.5, **options})
