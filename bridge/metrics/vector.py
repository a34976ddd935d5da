"""The vector that is summed over all ranks once per log interval: what stands where in it.

It follows from the configuration and the size of the job alone, never from data or from what a rank can read, so that all ranks
agree on it.  First the statistics that the plan prices, then what reports need beside them, then what each instrument asks
for (see :mod:`bridge.metrics.instruments`), then an entry for the work of each data-parallel replica, up to 64 of them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.flops.statistics import SEQUENCES, TOKENS, Statistic
from bridge.metrics.place import Place

#: One entry per replica or rank up to this many; above, there is a maximum instead.
MAX_ENTRIES = 64

#: Numbers that are no integers travel as multiples of 2^-40, so that their sum is the same in any order.
_UNIT = 1 << 40


class Reduce(enum.Enum):
    """What becomes of an entry over all ranks."""

    SUM = "sum of integers from 0 to 2^80"
    FLOAT = "sum of numbers of any sign up to 2^39, to 12 decimals"
    MAX = "largest of integers of 63 bits"


@dataclass(frozen=True)
class Slice:
    """Some entries of the vector that belong together.

    Attributes:
        name: ``energy_mj``; an entry of several is ``rank_compute_ns[3]``.
        size: entries; the same on every rank.
        reduce: what becomes of them.
        kept: whether they go on over the whole job and stand in checkpoints; else they say something of an interval.
    """

    name: str
    size: int = 1
    reduce: Reduce = Reduce.SUM
    kept: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the entries."""
        return (self.name,) if self.size == 1 else tuple(f"{self.name}[{index}]" for index in range(self.size))


#: What is counted beside the plan's statistics. ``*_ns`` are nanoseconds.
COUNTERS = (
    *(Slice(name, kept=True) for name in ("micro_batches", "positions", "unlearned_tokens", "unread_micro_batches")),
    *(Slice(name) for name in ("data_wait_ns", "failures")),
)

#: Whether all ranks mean the same step: equal steps have the sum and the sum of squares that one rank expects.
STEP, SQUARED_STEP, RANKS = "launched_at", "launched_at_squared", "launched_by"
PAIRING = (Slice(STEP), Slice(SQUARED_STEP), Slice(RANKS))

REPLICA_WORK, HEAVIEST = "replica_work", "heaviest_replica"


class VectorLayout:
    """What stands where.

    Args:
        statistics: ``plan.statistics``; they come first, in this order.
        place: of this process, of which the sizes of the job matter; None: it is alone.
        slices: further ones, of instruments.

    Raises:
        ValueError: two slices of one name.
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
        """Of the entries that are summed."""
        self.maxima: tuple[str, ...] = tuple(n for part in self.slices if part.reduce is Reduce.MAX for n in part.names)
        """Of those whose largest is wanted."""
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
        """Whether a slice stands among the sums, not the maxima."""
        return self._slices[name].reduce is not Reduce.MAX

    def range(self, name: str) -> range:
        """Positions of a slice among the sums, or among the maxima; empty where there is no such slice."""
        return self._ranges.get(name, range(0))

    def zeros(self) -> list[int]:
        """A vector of nothing."""
        return [0] * len(self.names)

    def add(self, vector: list[int], name: str, reading: Any) -> None:
        """Add what an instrument read to a vector: a number, or one for each entry.

        Raises:
            ValueError: a number that is not finite, or not as many as there are entries.
        """
        place = self._ranges[name]
        numbers = reading if isinstance(reading, (list, tuple)) else [reading]
        if self._slices[name].reduce is Reduce.FLOAT:
            numbers = [_fixed(number, name) for number in numbers]
        before = vector[place.start : place.stop]
        vector[place.start : place.stop] = [a + b for a, b in zip(before, numbers, strict=True)]

    def get(self, vector: Sequence[int], name: str) -> list[Any]:
        """The entries of a slice, as they were added."""
        place = self._ranges[name]
        values = list(vector[place.start : place.stop])
        return [value / _UNIT for value in values] if self._slices[name].reduce is Reduce.FLOAT else values


def _fixed(number: int | float, name: str) -> int:
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return round(number * _UNIT)


def work_of_replicas(place: Place) -> tuple[Slice, ...]:
    """An entry for each; of too many the heaviest alone. None where replicas share their samples."""
    if place.replicas < 2 or place.dealt:
        return ()
    if place.replicas <= MAX_ENTRIES:
        return (Slice(REPLICA_WORK, place.replicas),)
    return (Slice(HEAVIEST, reduce=Reduce.MAX),)
