"""Reduces the points of a long run without changing its picture."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

#: About the width of a chart in pixels.
MOST_POINTS = 800
#: From this many values on, importing numpy pays off.
_LONG = 256


@cache
def numpy_if_there() -> Any:
    """The package numpy; None if it is not installed."""
    return import_module("numpy") if find_spec("numpy") else None


def is_whole(column: Sequence[Any]) -> bool:
    """Whether every row has a value."""
    return isinstance(column, array) or None not in column


def kept(columns: Sequence[Sequence[float | None]], most: int = MOST_POINTS) -> list[int]:
    """Which rows to draw: all of a short run; for a long one the first, the last and the extremes of every stretch.

    Only measured points are drawn, and no peak is lost.

    Args:
        columns: the series, one value per row; None where a row has none.
        most: about how many rows to keep.
    """
    count = len(columns[0]) if columns else 0
    full = [column for column in columns if is_whole(column)]
    rows: Sequence[int] = range(count)
    if not full:
        rows = [i for i in rows if any(column[i] is not None for column in columns)]
    if len(rows) <= most:
        return list(rows)
    stretches = max(1, most // (2 * len(columns)))
    chosen = {rows[0], rows[-1]}
    for stretch in range(stretches):
        part = rows[stretch * len(rows) // stretches : (stretch + 1) * len(rows) // stretches]
        for column in columns:
            chosen |= extremes(column, part)
    return sorted(chosen)


def extremes(column: Sequence[float | None], part: Sequence[int]) -> set[int]:
    """The rows of the smallest and the largest value of a stretch."""
    if isinstance(part, range):
        values = column[part.start : part.stop]
        if isinstance(values, array) and len(values) >= _LONG and (numpy := numpy_if_there()):
            numbers = numpy.frombuffer(values, values.typecode)
            return {part.start + int(numbers.argmin()), part.start + int(numbers.argmax())}
        if is_whole(values):
            return {part.start + values.index(extreme(values)) for extreme in (min, max)}  # type: ignore[type-var]
    there = [(value, i) for i in part if (value := column[i]) is not None]
    return {min(there)[1], max(there)[1]} if there else set()
