"""Pairs of context ranks against the causal mask itself."""

import pytest

from bridge.flops import ConfigError
from bridge.flops.context_balance import causal_pairs, imbalance


def by_mask(length, ranks, order):
    """Every query counted by hand, on the rank that holds it."""
    parts = ranks * (2 if order == "zigzag" else 1)
    size, pairs = length // parts, [0] * ranks
    for query in range(length):
        part = query // size
        pairs[part if order == "ring" else min(part, parts - 1 - part)] += query + 1
    return pairs


@pytest.mark.parametrize("order", ["zigzag", "ring"])
@pytest.mark.parametrize(("lengths", "ranks"), [([16], 1), ([16], 2), ([24, 48], 4), ([8, 8, 40], 2)])
def test_every_pair_is_on_one_rank(lengths, ranks, order):
    found = causal_pairs(lengths, ranks, order)
    assert found == [sum(column) for column in zip(*(by_mask(length, ranks, order) for length in lengths), strict=True)]
    assert sum(found) == sum(length * (length + 1) // 2 for length in lengths)


def test_zigzag_is_even_and_a_ring_is_not():
    assert causal_pairs([16], 2) == [68, 68]
    assert causal_pairs([16], 2, "ring") == [36, 100]
    assert imbalance([4096, 512], 8) == 1
    assert imbalance([16], 2, "ring") == 100 * 2 / 136
    assert imbalance([], 4) == 1


def test_what_cannot_be_cut():
    with pytest.raises(ConfigError, match="10 tokens cannot be split into 4 equal parts"):
        causal_pairs([10], 2)
    with pytest.raises(ConfigError, match="zigzag"):
        causal_pairs([16], 2, "spiral")
