"""From the moments of a batch (count, sum, sum of squares) to the statistics of a plan: the only place that estimates.

Counts, sums and sums of squares are exact.  For the rest the rules are Megatron's, which take every sequence to have the mean
length; they are exact when all sequences are equally long and longer than the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from bridge.flops.statistics import Statistic


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of the lengths of a batch.

    ``nominal`` is the sequence length that the configuration names, which Megatron uses for DeepSeek-V4.
    """

    count: int
    total: Fraction
    squares: Fraction
    nominal: Fraction

    @property
    def mean(self) -> Fraction:
        return Fraction(self.total, self.count) if self.count else Fraction(0)

    @property
    def weighted_mean(self) -> Fraction:
        """sum s^2 / sum s: the mean length a token finds itself in."""
        return self.squares / self.total if self.total else Fraction(0)


def _window_pairs(m: Moments, window: int) -> Fraction:
    if window >= m.mean:
        return m.squares / 2
    return m.total * window - Fraction(window * (window - 1), 2) * m.count


def _topk_pairs(m: Moments, topk: int) -> Fraction:
    if m.weighted_mean <= topk:
        return (m.squares + m.total) / 2
    return m.total * topk - m.total * Fraction(topk * (topk - 1), 2) / m.weighted_mean


def _doubled_compressed_topk_area(m: Moments, ratio: int, topk: int) -> Fraction:
    t = min(topk, m.nominal // ratio)
    return m.total * 2 * t * (1 - ratio * t / (2 * m.nominal))


def _by_mean(kind: str) -> Callable[..., Fraction]:
    """count x f(mean length), between whole lengths on a straight line."""

    def estimate(m: Moments, *sizes: int) -> Fraction:
        low = m.mean // 1
        here, there = (Statistic(kind, sizes=sizes).of(int(length)) for length in (low, low + 1))
        return m.count * (here + (m.mean - low) * (there - here))

    return estimate


_RULES: dict[str, Callable[..., Fraction]] = {
    "count": lambda m: Fraction(m.count),
    "length": lambda m: m.total,
    "square": lambda m: m.squares,
    "causal_pairs": lambda m: (m.squares + m.total) / 2,
    "window_pairs": _window_pairs,
    "topk_pairs": _topk_pairs,
    "doubled_compressed_topk_area": _doubled_compressed_topk_area,
    "quotient": lambda m, divisor: Fraction(m.count * (m.mean // divisor)),
}


def estimate(statistic: Statistic, moments: Moments) -> Fraction:
    """The value of ``statistic`` for a batch of which only the moments are known."""
    rule = _RULES.get(statistic.kind) or _by_mean(statistic.kind)
    return Fraction(rule(moments, *statistic.sizes))
