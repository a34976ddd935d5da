"""How evenly context parallelism spreads causal attention: a rank that holds the end of a sequence looks back at all of it."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.flops.choices import Choice
from bridge.flops.shapes import ConfigError
from bridge.flops.statistics import triangle


class Order(Choice):
    """Which part of a sequence a rank holds."""

    ZIGZAG = "zigzag"
    """Of 2 x ranks parts one from the front and one from the back: megatron-core's, Transformer Engine's."""
    RING = "ring"
    """One part, in the order of the ranks."""


def causal_pairs(sequence_lengths: Iterable[int], ranks: int, order: str = "zigzag") -> list[int]:
    """Query-key pairs of each context rank.

    Args:
        sequence_lengths: tokens of each sequence, a multiple of 2 x ``ranks`` (of ``ranks`` in a ring), as frameworks pad them.
        ranks: context-parallel size.
        order: one of ``Order``.

    Raises:
        ConfigError: a length that cannot be cut so, or an unknown order.
    """
    zigzag = Order(order) is Order.ZIGZAG
    parts = ranks * (2 if zigzag else 1)
    pairs = [0] * ranks
    for length in sequence_lengths:
        if length % parts:
            raise ConfigError(f"sequence_lengths: {length} tokens cannot be split into {parts} equal parts; pad the sequence")
        size = length // parts
        for part in range(parts):
            # Everything before the part, and what precedes inside it.
            pairs[min(part, parts - 1 - part) if zigzag else part] += part * size * size + triangle(size)
    return pairs


def imbalance(sequence_lengths: Iterable[int], ranks: int, order: str = "zigzag") -> float:
    """Pairs of the rank with most over the mean; 1 is even. Arguments as for ``causal_pairs``."""
    pairs = causal_pairs(sequence_lengths, ranks, order)
    return max(pairs) * ranks / sum(pairs) if any(pairs) else 1.0
