"""From the moments of a batch (count, sum, sum of squares) to the statistics of a plan: the only place that estimates.

Counts, sums and sums of squares are exact.  The rest follows Megatron's rules, which assume that every sequence has the mean
length; they are exact when all sequences are equally long and longer than the window.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from operator import itemgetter
from typing import Any, NamedTuple

from bridge.flops.lengths import amount
from bridge.flops.shapes import ConfigError, short
from bridge.flops.statistics import Statistic

Number = int | Fraction


class PaddedSum(int):
    """A sum of lengths in which padding is counted: it may be more than the squares of the lengths without."""


class Moments(NamedTuple):
    """Number, sum and sum of squares of the lengths of a batch.

    ``nominal`` is the sequence length that the configuration names, which Megatron uses for DeepSeek-V4.
    """

    number: Number
    total: Number
    squares: Number
    nominal: Number

    @classmethod
    def of(cls, number: Any, total: Any, squares: Any = None, nominal: Any = None) -> Moments:
        """From any numbers; without ``squares`` every length is the mean, without ``nominal`` that is the mean too.

        Raises:
            ConfigError: An argument is not a number, or no lengths have these sums.
        """
        if type(number) is int and type(total) is type(squares) is int and number > 0 and 0 <= total <= squares <= total * total:
            # Every step of a run comes by here; this is cls(...) in half the time.
            return tuple.__new__(cls, (number, total, squares, nominal or divide(total, number)))
        padded = isinstance(total, PaddedSum)
        number, total = amount("batch_size", number), amount("seqlen_sum", total)
        if total and not number:
            raise ConfigError(f"batch_size={number} with seqlen_sum={short(total)} is impossible: an empty batch holds nothing")
        mean = divide(total, number) if number else 0
        if squares is None:
            squares = divide(total * total, number or 1)
        else:
            squares = _possible(amount("seqlen_squared_sum", squares), total, 0 if padded else total)
        return cls(number, total, squares, nominal or mean)


def _possible(squares: Number, total: Number, least: Number) -> Number:
    # Whole lengths are no larger than their squares, and one sequence of all the tokens has the largest. The mean of batch_size
    # lengths sets no bound: a row of packed data counts once in batch_size and holds several sequences.
    if least <= squares <= total * total:
        return squares
    raise ConfigError(
        f"seqlen_squared_sum={short(squares)} is impossible for seqlen_sum={short(total)}: give the sum of the squared lengths, "
        "which is at least their sum and at most its square"
    )


NOTHING = Moments(0, 0, 0, 0)


def divide(a: Number, b: Number) -> Number:
    """a / b, an int where it is integral."""
    if type(a) is int and type(b) is int and a % b == 0:
        return a // b
    return Fraction(a) / b


def _window_pairs(m: Moments, window: int) -> Number:
    number, total, squares, _ = m
    if window * number >= total:
        return divide(squares, 2)
    return total * window - window * (window - 1) // 2 * number


def _topk_pairs(m: Moments, topk: int) -> Number:
    # r = sum s^2 / sum s, the mean length a token finds itself in: T(r) per token below top-k, else the top-k triangle.
    if m.squares <= topk * m.total:
        return divide(m.squares + m.total, 2)
    return m.total * topk - divide(m.total * m.total * (topk * (topk - 1) // 2), m.squares)


def _doubled_compressed_topk_area(m: Moments, ratio: int, topk: int) -> Number:
    if not m.nominal:
        return 0
    t = min(topk, m.nominal // ratio)
    return m.total * 2 * t * (1 - divide(ratio * t, 2 * m.nominal))


def _by_mean(kind: str) -> Callable[..., Number]:
    """number x f(mean length), between whole lengths on a straight line."""

    def at_mean(m: Moments, *sizes: int) -> Number:
        if not m.number:
            return 0
        mean = Fraction(m.total) / m.number
        low = int(mean)
        here, there = (Statistic(kind, sizes=sizes).of(length) for length in (low, low + 1))
        return m.number * (here + (mean - low) * (there - here))

    return at_mean


_RULES: dict[str, Callable[..., Number]] = {
    "count": itemgetter(0),
    "length": itemgetter(1),
    "square": itemgetter(2),
    "causal_pairs": lambda m: divide(m.squares + m.total, 2),
    "window_pairs": _window_pairs,
    "topk_pairs": _topk_pairs,
    "doubled_compressed_topk_area": _doubled_compressed_topk_area,
    "quotient": lambda m, divisor: m.number * (m.total // (m.number * divisor)) if m.number else 0,
}


def rule(statistic: Statistic) -> Callable[..., Number]:
    r"""The function (moments, \*sizes) -> value of ``statistic`` for a batch of which only the moments are known."""
    return _RULES.get(statistic.kind) or _by_mean(statistic.kind)
