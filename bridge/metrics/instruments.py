"""Measurements beside the counting: compute time, energy, memory and others.

The configuration decides which measurements there are, so they are the same on every rank.  A measurement declares which slices
of the vector it needs, how to open an instrument on this rank, and what the sums over all ranks mean.  Its instrument is read
once per log interval, and the reading is part of the sum.  An instrument that fails costs one warning and its keys.

To add one: a subclass of :class:`Measurement` in a file of its own, its keys in ``keys.py``, a line in ``ThroughputCallback``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bridge.metrics.place import Place
from bridge.metrics.vector import Slice, VectorLayout

if TYPE_CHECKING:
    from bridge.metrics.batch_statistics import BatchStatistics
    from bridge.metrics.throughput import Interval, Metrics, Work

logger = logging.getLogger(__name__)
T = TypeVar("T")

COMPUTE_TIME, ENERGY, MEMORY = "compute time", "energy", "memory"
"""Names of measurements, for users."""


class Instrument:
    """A meter on this rank that runs while training runs. Methods that a subclass does not override do nothing."""

    def run(self) -> None:
        """Training continues. Does nothing if the instrument is already running."""

    def pause(self) -> None:
        """Training pauses. Does nothing if the instrument is already paused."""

    def end_step(self) -> None:
        """A training step is over."""

    def lap(self) -> Any | None:
        """The reading since the last lap, as ``Measurement.entries`` takes it; None if it is unknown."""
        raise NotImplementedError

    def close(self) -> None:
        """No more steps."""


class Measured(Protocol):
    """What a measurement found about the whole job in an interval.

    If devices did work beside the model's, it has ``hardware_flops`` by number format; if some of that counts in MFU, it has
    ``model_flops`` too.
    """

    def metrics(self, interval: Interval) -> Metrics:
        """Keys and values to log. ``interval.seconds`` and ``interval.timed.steps`` are positive."""


@dataclass(frozen=True)
class Summed:
    """The vectors of an interval, over all ranks.

    Attributes:
        layout: positions of the entries.
        place: place of this process.
        work: everything since the last report. timed: without the warm-up. sampled: the sampled steps among these.
        maxima: the entries of which the maximum is taken.
        price: returns the work that one of the summed vectors stands for.
    """

    layout: VectorLayout
    place: Place
    work: Sequence[int]
    timed: Sequence[int]
    sampled: Sequence[int]
    maxima: Sequence[int]
    price: Callable[[Sequence[int]], Work]

    def __getitem__(self, name: str) -> list[Any]:
        """The entries of a slice: sums of the timed part, or maxima."""
        return self.layout.get(self.timed if self.layout.is_summed(name) else self.maxima, name)


class Measurement:
    """A kind of measurement.

    Attributes:
        what: what it measures, for users.
        slices: its slices of the vector; the same on every rank.
        sampled: whether its instrument runs in sampled steps only, see ``Instruments.every``.
        has_samples: whether its instrument runs in all steps and sees more in sampled ones; it then has ``start_sample``.
    """

    what: str
    slices: tuple[Slice, ...]
    sampled: bool = False
    has_samples: bool = False

    def open(self) -> Instrument | None:
        """The instrument of this rank; None if there is nothing to read here. May raise."""
        raise NotImplementedError

    def entries(self, reading: Any) -> Mapping[str, Any]:
        """A reading by slice: a number, or a list with one number per entry. By default the reading is the first slice's."""
        return {self.slices[0].name: reading}

    def measured(self, summed: Summed) -> Measured | None:
        """What the sums mean; called if every rank had a reading. None if they mean nothing."""
        raise NotImplementedError

    @property
    def readings(self) -> str:
        """The name of the entry that counts the ranks with a reading."""
        return f"{self.slices[0].name}_readings"


class Instruments:
    """The instruments of this rank; their errors become warnings.

    Args:
        kinds: what is measured; the same on every rank.
        every: one of this many steps is sampled; 1: every step.
    """

    def __init__(self, kinds: Iterable[Measurement] = (), *, every: int = 1) -> None:
        self.kinds = tuple(kinds)
        self.every = every
        self._broken: set[str] = set()
        self._opened = [(kind, one) for kind in self.kinds if (one := self.attempt(kind.what, kind.open)) is not None]
        self._always = [(kind, one) for kind, one in self._opened if not (kind.sampled and every > 1)]
        self._sampled = [pair for pair in self._opened if pair not in self._always]
        self._ending = [pair for pair in self._always if type(pair[1]).end_step is not Instrument.end_step]
        self._starting = [(kind, one) for kind, one in self._opened if kind.has_samples]
        self.counting = [one for _, one in self._opened if hasattr(one, "add_counts")]
        """Instruments that add to the sums of the batches themselves."""
        self._running = False

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices of all measurements, whether or not this rank has a reading."""
        return tuple(part for kind in self.kinds for part in (*kind.slices, Slice(kind.readings)))

    @property
    def samples(self) -> bool:
        """Whether some steps are sampled, on any rank."""
        return self.every > 1 and any(kind.sampled or kind.has_samples for kind in self.kinds)

    @property
    def overhead_ns(self) -> int:
        """Nanoseconds that the instruments took inside the steps so far."""
        return sum(getattr(one, "overhead_ns", 0) for _, one in self._opened)

    def run(self) -> None:
        """Training continues."""
        if not self._running:
            self._running = True
            self._each(self._always, lambda instrument: instrument.run())

    def pause(self) -> None:
        """Training pauses."""
        self._running = False
        self._each(self._opened, lambda instrument: instrument.pause())

    def start_sample(self) -> None:
        """A sampled step begins."""
        self._each(self._sampled, methodcaller("run"))
        self._each(self._starting, methodcaller("start_sample"))

    def end_step(self, *, sampled: bool = False) -> None:
        """A training step is over."""
        self._each(self._ending, _end_step)
        if sampled:
            self._each(self._sampled, _end_sample)

    def add_counts(self, batch: BatchStatistics, *, skipped: bool) -> None:
        """Add what instruments counted in a step to the sums of its micro-batches. May raise, because FLOPs depend on it."""
        for instrument in self.counting:
            instrument.add_counts(batch, skipped=skipped)

    def lap(self) -> dict[str, Any]:
        """Readings by slice, from the instruments that have one."""
        readings: dict[str, Any] = {}

        def read(kind: Measurement, instrument: Instrument) -> None:
            if (reading := instrument.lap()) is not None:
                readings.update(kind.entries(reading), **{kind.readings: 1})

        for kind, instrument in self._opened:
            self.attempt(kind.what, partial(read, kind, instrument))
        return readings

    def measured(self, summed: Summed) -> dict[str, Measured]:
        """The findings of all measurements for which every rank had a reading, by ``what``."""
        found: dict[str, Measured] = {}
        for kind in self.kinds:
            if summed[kind.readings] == [summed.place.world]:
                measured = self.attempt(kind.what, partial(kind.measured, summed))
                if measured is not None:
                    found[kind.what] = measured
        return found

    def close(self) -> None:
        """No more steps."""
        self._each(self._opened, lambda instrument: instrument.close())

    def attempt(self, what: str, call: Callable[[], T | None]) -> T | None:
        """The result of ``call``; if it raises, None from then on, and one warning."""
        if what in self._broken:
            return None
        try:
            return call()
        except Exception as error:
            self._break(what, error)
            return None

    def _break(self, what: str, error: Exception) -> None:
        self._broken.add(what)
        logger.warning("%s is not reported from here on: %s: %s", what, type(error).__name__, error)
        logger.debug("the exception", exc_info=error)

    def _each(self, instruments: Iterable[tuple[Measurement, Instrument]], call: Callable[[Instrument], Any]) -> None:
        for kind, instrument in instruments:
            if kind.what not in self._broken:
                try:
                    call(instrument)
                except Exception as error:
                    self._break(kind.what, error)


_end_step = methodcaller("end_step")


def _end_sample(instrument: Instrument) -> None:
    instrument.end_step()
    instrument.pause()
