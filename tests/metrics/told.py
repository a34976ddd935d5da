"""A clock that is moved by hand, and a rank whose steps are told on it."""

from __future__ import annotations

from bridge.metrics.spans import Spans
from bridge.metrics.time_parts import RankTimes, TimeEntries

ONE_STAGE = TimeEntries()


class Hand:
    """A clock that stands still until it is moved; the device is ``behind`` by so much."""

    def __init__(self) -> None:
        self.now, self.behind = 0.0, 0.0

    def mark(self) -> float:
        return self.now

    def reached(self, mark: float) -> bool:
        return mark <= self.now - self.behind

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Rank:
    """A rank whose steps are told."""

    def __init__(self, shape: TimeEntries = ONE_STAGE, stage: int = 0, **options) -> None:
        self.clock = Hand()
        self.spans = Spans(self.clock, **{"every_step": True, **options})
        self.times = RankTimes(shape, stage)
        self.spans.run()

    def spend(self, seconds: float, *names: str) -> None:
        """Inside spans of these names, the outermost first; ``wait`` as ``Work.wait`` makes it."""
        for name in names:
            if name == "wait":
                seen = self.spans.begin_wait()
            else:
                self.spans.push(name)
        self.clock.now += seconds
        for name in reversed(names):
            if name != "wait" or seen:
                self.spans.pop(name)

    def end_step(self) -> None:
        self.spans.end_step()
        self.times.add(self.spans.steps())

    def send(self):
        return self.times.take()
