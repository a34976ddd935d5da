"""Seconds of training in an interval, without evaluations, checkpoints and other pauses.

An interval is a list of stretches, each between two marks.  A mark is a reading of the host's monotonic clock, or a CUDA event
in the stream: then the stretch is the time that the device took, which is known once the device has reached its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Clock(Protocol):
    """Makes marks, and knows the seconds between two of them."""

    def mark(self) -> Any:
        """A mark of the present; waits for nothing."""

    def reached(self, mark: Any) -> bool:
        """Whether the seconds up to this mark are known."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""


class _Readings:
    """A clock whose marks are seconds."""

    def reached(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start


class HostClock(_Readings):
    """The host's monotonic clock."""

    mark = staticmethod(time.perf_counter)


class ThreadClock(_Readings):
    """Processor time of the calling thread, without sleep (as in gloo's waits) and without other processes."""

    mark = staticmethod(time.thread_time)


class CudaClock:
    """Events in the current CUDA stream; nothing waits for them."""

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reached(self, mark: Any) -> bool:
        return mark.query()

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_of(chunks: Iterable[Any], on_cpu: type[Clock]) -> Clock | None:
    """The clock that times passes of these modules: CUDA's events on a GPU; None where they are not on one kind of device."""
    devices = {parameter.device.type for chunk in chunks for parameter in chunk.parameters()}
    kinds: dict[str, type[Clock]] = {"cuda": CudaClock, "cpu": on_cpu}
    return kinds[devices.pop()]() if len(devices) == 1 and devices <= kinds.keys() else None


@dataclass(frozen=True)
class Lap:
    """An interval that is over."""

    clock: Clock
    stretches: Sequence[tuple[Any, Any]]

    def ready(self) -> bool:
        """Whether :meth:`seconds` returns without waiting for the device."""
        return all(self.clock.reached(end) for _, end in self.stretches[-1:])

    def seconds(self) -> float:
        """Seconds of the interval without its pauses."""
        return sum(self.clock.seconds(start, end) for start, end in self.stretches)


class IntervalTimer:
    """A stopwatch that can pause, and that takes laps while it runs."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._stretches: list[tuple[Any, Any]] = []
        self._since: Any = None

    def run(self) -> None:
        """Start, or continue after a pause. Does nothing if it is running."""
        if self._since is None:
            self._since = self.clock.mark()

    def pause(self) -> None:
        """Stop until :meth:`run`. Does nothing if it is paused."""
        if self._since is not None:
            self._stretches.append((self._since, self.clock.mark()))
            self._since = None

    def lap(self) -> Lap:
        """Everything since the last lap; the stopwatch keeps running, or stays paused."""
        running = self._since is not None
        self.pause()
        lap = Lap(self.clock, tuple(self._stretches))
        self._stretches = []
        if running:
            self._since = lap.stretches[-1][1]  # no gap between two laps
        return lap
