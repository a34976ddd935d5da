"""The layout of the vector that is summed over all ranks once per log interval.

The layout follows from the configuration and the size of the job alone, never from data or from what a rank can read, so that
all ranks agree on it.  First come the statistics that the plan prices, then the counters that reports need, then the entries of
each instrument (see :mod:`bridge.metrics.instruments`), then the work of each data-parallel replica, for up to 64 of them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.flops.statistics import SEQUENCES, TOKENS, Statistic
from bridge.metrics.place import Place

#: Up to this many replicas or ranks have an entry each; of more, the maximum alone is sent.
MAX_ENTRIES = 64

#: Floats are sent as multiples of 2^-40, so that their sum is the same in any order.
_UNIT = 1 << 40


class Reduce(enum.Enum):
    """How an entry is reduced over all ranks."""

    SUM = "sum of integers from 0 to 2^80"
    FLOAT = "sum of numbers of any sign up to 2^39, to 12 decimals"
    MAX = "largest of integers of 63 bits"


@dataclass(frozen=True)
class Slice:
    """Entries of the vector that belong together.

    Attributes:
        name: ``energy_mj``; where there are several entries, one of them is ``rank_compute_ns[3]``.
        size: number of entries; the same on every rank.
        reduce: how they are reduced over all ranks.
        kept: whether they accumulate over the whole job and are saved in checkpoints; else they describe one interval.
    """

    name: str
    size: int = 1
    reduce: Reduce = Reduce.SUM
    kept: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the entries."""
        return (self.name,) if self.size == 1 else tuple(f"{self.name}[{index}]" for index in range(self.size))


#: Counters beside the plan's statistics. ``*_ns`` are nanoseconds.
COUNTERS = (
    *(Slice(name, kept=True) for name in ("micro_batches", "positions", "unlearned_tokens", "unread_micro_batches")),
    *(Slice(name) for name in ("data_wait_ns", "failures")),
)

#: These check that all ranks sum the same step: only equal steps have the sum and the sum of squares that each rank expects.
STEP, SQUARED_STEP, RANKS = "launched_at", "launched_at_squared", "launched_by"
PAIRING = (Slice(STEP), Slice(SQUARED_STEP), Slice(RANKS))

REPLICA_WORK, HEAVIEST = "replica_work", "heaviest_replica"


class VectorLayout:
    """The position of every entry.

    Args:
        statistics: ``plan.statistics``; they come first, in this order.
        place: place of this process, for the sizes of the job; None: it is alone.
        slices: the slices of instruments.

    Raises:
        ValueError: two slices have one name.
    """

    def __init__(self, statistics: Sequence[Statistic] = (), place: Place | None = None, slices: Iterable[Slice] = ()) -> None:
        self.statistics = tuple(dict.fromkeys((*statistics, SEQUENCES, TOKENS)))
        self.slices = (
            *(Slice(statistic.name, kept=True) for statistic in self.statistics),
            *COUNTERS,
            *PAIRING,
            *slices,
            *(work_of_replicas(place) if place is not None else ()),
        )
        summed = [part for part in self.slices if part.reduce is not Reduce.MAX]
        self.names: tuple[str, ...] = tuple(name for part in summed for name in part.names)
        """Names of the entries that are summed."""
        self.maxima: tuple[str, ...] = tuple(n for part in self.slices if part.reduce is Reduce.MAX for n in part.names)
        """Names of the entries of which the maximum is taken."""
        if len({part.name for part in self.slices}) < len(self.slices):
            raise ValueError(f"two slices have one name: {', '.join(part.name for part in self.slices)}")
        self.index = {name: position for names in (self.names, self.maxima) for position, name in enumerate(names)}
        self.kept = frozenset(name for part in self.slices if part.kept for name in part.names)
        self._slices = {part.name: part for part in self.slices}
        starts = {part.name: self.index[part.names[0]] if part.size else 0 for part in self.slices}
        self._ranges = {part.name: range(starts[part.name], starts[part.name] + part.size) for part in self.slices}

    def __contains__(self, name: object) -> bool:
        return name in self._slices

    def is_summed(self, name: str) -> bool:
        """Whether a slice is summed; otherwise its maximum is taken."""
        return self._slices[name].reduce is not Reduce.MAX

    def range(self, name: str) -> range:
        """Positions of a slice among the sums or the maxima; empty if there is no such slice."""
        return self._ranges.get(name, range(0))

    def zeros(self) -> list[int]:
        """A vector of zeros."""
        return [0] * len(self.names)

    def add(self, vector: list[int], name: str, reading: Any) -> None:
        """Add the reading of an instrument to a vector: one number, or a list with one number per entry.

        Raises:
            ValueError: a number is not finite, or there are not as many numbers as entries.
        """
        place = self._ranges[name]
        numbers = reading if isinstance(reading, (list, tuple)) else [reading]
        if self._slices[name].reduce is Reduce.FLOAT:
            numbers = [_fixed(number, name) for number in numbers]
        before = vector[place.start : place.stop]
        vector[place.start : place.stop] = [a + b for a, b in zip(before, numbers, strict=True)]

    def get(self, vector: Sequence[int], name: str) -> list[Any]:
        """The entries of a slice, in the unit in which they were added."""
        place = self._ranges[name]
        values = list(vector[place.start : place.stop])
        return [value / _UNIT for value in values] if self._slices[name].reduce is Reduce.FLOAT else values


def _fixed(number: int | float, name: str) -> int:
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return round(number * _UNIT)


def work_of_replicas(place: Place) -> tuple[Slice, ...]:
    """The slice for the replicas' work: one entry each, or the heaviest alone above ``MAX_ENTRIES``.

    There is none for a single replica, nor where ranks share their samples.
    """
    if place.replicas < 2 or place.dealt:
        return ()
    if place.replicas <= MAX_ENTRIES:
        return (Slice(REPLICA_WORK, place.replicas),)
    return (Slice(HEAVIEST, reduce=Reduce.MAX),)
