"""Fewer points, the same picture: of a long run those are kept that can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

#: A chart is about as many pixels wide.
MOST_POINTS = 800


def kept(columns: Sequence[Sequence[Optional[float]]], most: int = MOST_POINTS) -> list[int]:
    """Which rows to draw: all of a short run; of a long one the first, the last, and the extremes of every stretch.

    Only points that were measured are drawn, and no peak is lost.

    Args:
        columns: the series, one value a row, None where a row has none.
        most: about how many rows to keep.
    """
    rows = [i for i in range(len(columns[0]) if columns else 0) if any(column[i] is not None for column in columns)]
    if len(rows) <= most:
        return rows
    stretches = max(1, most // (2 * len(columns)))
    chosen = {rows[0], rows[-1]}
    for stretch in range(stretches):
        part = rows[stretch * len(rows) // stretches : (stretch + 1) * len(rows) // stretches]
        for column in columns:
            there = [(value, i) for i in part if (value := column[i]) is not None]
            if there:
                chosen |= {min(there)[1], max(there)[1]}
    return sorted(chosen)
