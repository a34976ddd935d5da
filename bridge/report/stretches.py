"""The columns of a run; of a run that is too long, a selection that needs no more memory for more rows.

Each stretch of rows keeps those with the smallest or the largest value of a key, so no peak is lost, and evenly spaced rows for
medians; sums give means.  When there are too many stretches, neighbors are merged.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.metrics.why import PREFIX
from bridge.report.thin import extremes

Columns = dict[str, Sequence[Any]]

#: Up to this many rows all are kept. Beyond: rows per stretch, one row in how many is sampled for medians, most stretches.
MOST_HELD, _ROWS, _EVERY, _MOST = 2**15, 512, 8, 512


@dataclass(frozen=True)
class Thinned:
    """What is known about all rows of a thinned run.

    Attributes:
        count: the number of rows.
        every: the sample has every ``every``-th row.
        sample: the columns of the sampled rows.
        means: mean value by key, for the seconds of the parts of a step.
    """

    count: int
    every: int
    sample: Columns
    means: Mapping[str, float]


class Stretches:
    """Collects the rows of a run in their order.

    Args:
        most: up to this many rows all are kept.
    """

    def __init__(self, most: float) -> None:
        self.count = self._waiting = 0
        self._most = most
        self._fresh: list[Columns] = []
        self._rows, self._every = _ROWS, _EVERY
        self._kept: list[tuple[Columns, Columns]] = []
        self._sums: dict[str, list[float]] = {}

    def add(self, columns: Columns) -> None:
        """Append rows; all columns have the same length."""
        if not (rows := _length(columns)):
            return
        self._fresh.append(columns)
        self.count += rows
        self._waiting += rows
        if self.count > self._most and self._waiting >= self._rows:
            self._close()

    def give(self, run: Any) -> None:
        """Hand all rows, or those that were kept, to the run."""
        if self.count > self._most:
            if self._waiting:
                self._keep(joined(self._fresh))
            sample = joined([chosen for _, chosen in self._kept])
            means = {name: total / count for name, (total, count) in self._sums.items() if count}
            run.whole = Thinned(self.count, self._every, sample, means)
            self._fresh = [kept for kept, _ in self._kept]
        run.columns = joined(self._fresh)
        run.steps = run.columns.pop("step", [])

    def _close(self) -> None:
        """Turn the waiting rows into whole stretches."""
        waiting, begin = joined(self._fresh), 0
        while self._waiting >= (rows := self._rows):
            self._keep(_rows_of(waiting, range(begin, begin + rows)))
            begin, self._waiting = begin + rows, self._waiting - rows
        self._fresh = [_rows_of(waiting, range(begin, begin + self._waiting))] if self._waiting else []

    def _keep(self, columns: Columns) -> None:
        """Add a stretch; if there are too many, merge neighbors."""
        for name in (name for name in columns if name.startswith(PREFIX)):
            numbers = [value for value in columns[name] if value is not None]
            sums = self._sums.setdefault(name, [0.0, 0])
            sums[0] += sum(numbers)
            sums[1] += len(numbers)
        self._kept.append((_seen(columns), _rows_of(columns, range(0, _length(columns), self._every))))
        if len(self._kept) == _MOST:
            self._kept = [_together(*pair) for pair in zip(self._kept[::2], self._kept[1::2], strict=True)]
            self._rows, self._every = 2 * self._rows, 2 * self._every


def joined(parts: Sequence[Columns]) -> Columns:
    """Concatenate columns; None where a part lacks a key."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _chain([part.get(name) for part in parts], parts) for name in names}


def merged(steps: Sequence[Any], columns: Columns) -> tuple[Sequence[Any], Columns]:
    """One row per step, in the order of steps; later rows of a step override earlier ones."""
    places: dict[Any, list[int]] = {}
    for place, step in enumerate(steps):
        places.setdefault(step, []).insert(0, place)
    found = sorted(places)

    def newest(column: Sequence[Any], step: Any) -> Any:
        return next((column[place] for place in places[step] if column[place] is not None), None)

    return found, {name: [newest(column, step) for step in found] for name, column in columns.items()}


def _chain(parts: Sequence[Any], beside: Sequence[Columns]) -> Sequence[Any]:
    kinds: set[Any] = {getattr(part, "typecode", None) for part in parts}
    if len(kinds) == 1 and None not in kinds:
        whole = array(kinds.pop())
        for part in parts:
            whole += part
        return whole
    values: list[Any] = []
    for part, columns in zip(parts, beside, strict=True):
        values += [None] * _length(columns) if part is None else part
    return values


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values()), ()))


def _rows_of(columns: Columns, rows: Sequence[int]) -> Columns:
    if isinstance(rows, range):
        return {name: column[rows.start : rows.stop : rows.step] for name, column in columns.items()}
    return {name: _picked(column, rows) for name, column in columns.items()}


def _picked(column: Sequence[Any], rows: Sequence[int]) -> Sequence[Any]:
    picked = [column[row] for row in rows]
    return array(column.typecode, picked) if isinstance(column, array) else picked


def _seen(columns: Columns) -> Columns:
    """The first row, the last, and those with an extreme of any key."""
    rows = range(_length(columns))
    return _rows_of(columns, sorted({rows[0], rows[-1]}.union(*(extremes(column, rows) for column in columns.values()))))


def _together(one: tuple[Columns, Columns], other: tuple[Columns, Columns]) -> tuple[Columns, Columns]:
    """Two neighbors as one stretch, with every second row of their samples."""
    kept, sample = (joined(pair) for pair in zip(one, other, strict=True))
    return _seen(kept), _rows_of(sample, range(0, _length(sample), 2))
