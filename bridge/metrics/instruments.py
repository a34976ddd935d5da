"""What is measured beside the counting: compute time, energy.

An instrument is read once per log interval, on every rank; its reading rides in the sum.  One that breaks is one warning
and its keys are absent: all else goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Optional, Protocol, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

COMPUTE_TIME, ENERGY = "compute time", "energy"
"""What there are instruments of."""


class Instrument(Protocol):
    """A meter that runs while training runs.

    Attributes:
        entry: the name of its entry in the vector.
        what: what it measures, for users.
    """

    entry: str
    what: str

    def run(self) -> None:
        """Training goes on. Running already: nothing happens."""

    def pause(self) -> None:
        """What comes now is no training. Paused already: nothing happens."""

    def end_step(self) -> None:
        """A training step is over."""

    def lap(self) -> Optional[int]:
        """The reading since the last lap, not negative; None if it is not known."""

    def close(self) -> None:
        """No more steps."""


class Instruments:
    """Several instruments, none of which can raise."""

    def __init__(self, instruments: Iterable[Instrument] = ()) -> None:
        self._instruments = list(instruments)
        self._broken: set[str] = set()

    def open(self, what: str, make: Callable[[], Optional[Instrument]]) -> None:
        """Add one, if there is one to read on this rank."""
        if (instrument := self.attempt(what, make)) is not None:
            self._instruments.append(instrument)

    def run(self) -> None:
        """Training goes on."""
        self._each(lambda instrument: instrument.run())

    def pause(self) -> None:
        """What comes now is no training."""
        self._each(lambda instrument: instrument.pause())

    def end_step(self) -> None:
        """A training step is over."""
        self._each(lambda instrument: instrument.end_step())

    def lap(self) -> dict[str, int]:
        """Readings by entry, of the instruments that have one."""
        readings: dict[str, int] = {}

        def read(instrument: Instrument) -> None:
            if (reading := instrument.lap()) is not None:
                readings[instrument.entry] = reading

        self._each(read)
        return readings

    def close(self) -> None:
        """No more steps."""
        self._each(lambda instrument: instrument.close())

    def attempt(self, what: str, call: Callable[[], Optional[T]]) -> Optional[T]:
        """What ``call`` returns; if it raises, one warning, and None from then on."""
        if what in self._broken:
            return None
        try:
            return call()
        except Exception as error:
            self._broken.add(what)
            logger.warning("%s is not reported from here on: %s: %s", what, type(error).__name__, error)
            logger.debug("the exception", exc_info=error)
            return None

    def _each(self, call: Callable[[Instrument], None]) -> None:
        for instrument in self._instruments:
            self.attempt(instrument.what, partial(call, instrument))
