"""The work of a batch of text as one linear form of its moments, where a plan has one: what is asked every step.

Counts, sums, squares and causal pairs are linear in the moments.  A window is linear on either side of its size, so a plan with
windows has one form for each stretch of mean lengths between them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.flops.statistics import Statistic

#: Twice a statistic, in numbers of sequences, tokens and squares.
_DOUBLED = {"count": (2, 0, 0), "length": (0, 2, 0), "square": (0, 0, 2), "causal_pairs": (0, 1, 1)}


@dataclass(frozen=True)
class ClosedForm:
    """FLOPs of sequences whose moments are known.

    Attributes:
        windows: sizes, rising.
        forms: for mean lengths up to the first, up to the second, ..., beyond the last: factors of the moments.
        denominator: of all of them.
    """

    windows: tuple[int, ...]
    forms: tuple[tuple[int, int, int], ...]
    denominator: int

    def flops(self, number: int, total: int, squares: int) -> int | None:
        """The FLOPs, where they are integral; else None. ``number`` is positive."""
        windows = self.windows
        a, b, c = self.forms[bisect_left(windows, -(-total // number)) if windows else 0]
        flops, rest = divmod(a * number + b * total + c * squares, self.denominator)
        return None if rest else flops


def closed_form(statistics: Sequence[Statistic], values: Sequence[int], denominator: int) -> ClosedForm | None:
    """The form of what prices these statistics; None where some of them have none.

    Args:
        statistics: of a plan. Those of images are nothing in text.
        values, denominator: their prices.
    """
    priced = [
        (statistic, value) for statistic, value in zip(statistics, values, strict=True) if value and statistic.over != "images"
    ]
    if any(one.over != "sequences" or one.kind not in (*_DOUBLED, "window_pairs") for one, _ in priced):
        return None
    windows = sorted({statistic.sizes[0] for statistic, _ in priced if statistic.kind == "window_pairs"})
    forms = tuple(_form(priced, longer) for longer in _stretches(windows))
    return ClosedForm(tuple(windows), forms, 2 * denominator)


def _stretches(windows: Sequence[int]) -> Iterator[frozenset[int]]:
    """The windows that the mean length is beyond."""
    return (frozenset(windows[:count]) for count in range(len(windows) + 1))


def _form(priced: Sequence[tuple[Statistic, int]], beyond: frozenset[int]) -> tuple[int, int, int]:
    a = b = c = 0
    for statistic, value in priced:
        numbers, tokens, squares = _factors(statistic, beyond)
        a, b, c = a + value * numbers, b + value * tokens, c + value * squares
    return a, b, c


def _factors(statistic: Statistic, beyond: frozenset[int]) -> tuple[int, int, int]:
    """See ``moments``: a window sees half of the squares up to its size, and a band beyond."""
    if statistic.kind != "window_pairs":
        return _DOUBLED[statistic.kind]
    (window,) = statistic.sizes
    return (-window * (window - 1), 2 * window, 0) if window in beyond else (0, 0, 1)
