"""The life of a job, restarts included: the parts of its wall time, which add up, and how much of its work was kept.

A process of the job writes an event whenever it begins something else (:mod:`bridge.training.job.ledger`).  The time from an
event to the next one belongs to one part, so the parts are always the whole wall time.  A process that is killed writes nothing
more: its last sign of life ends its part, and down time follows.  A foreign loop has fewer events: what they do not distinguish
is one part, or ``unknown``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

FILE, BEATS = "job.jsonl", "job.beat"
"""The events of a ledger, and beside it the last signs of life: ``BEAT`` bytes for each of the last ``BEATS_KEPT`` steps."""
BEAT, BEATS_KEPT = 128, 4096

Event = Mapping[str, Any]
"""``event`` (its name), ``time`` (seconds since 1970), and facts."""

PARTS = {
    "launch": "from the launcher's start to the start of this process",
    "import": "loading the interpreter, libraries, configuration and data",
    "groups": "rendezvous of the ranks and creation of the process groups",
    "load": "building the model and reading the checkpoint",
    "start_up": "everything before training, in a loop that does not separate the three parts above",
    "first_step": "the first step of each process, with its compilation and allocation",
    "productive": "steps that were kept, without their waits for data",
    "data": "waits for batches in the steps that were kept",
    "evaluation": "steps on held-out text",
    "checkpoint": "saving, as far as training waits for it",
    "lost": "steps that were repeated after a restart",
    "down": "from the last sign of life of one process to the start of the next",
    "unknown": "in other frameworks' loops: time between steps whose use is unknown",
    "end": "the time after the last step",
}
"""The parts of a job's wall time, and what they mean."""

_FOLLOWS = {
    "launched": "launch",
    "process": "import",
    "imported": "groups",
    "groups": "load",
    "training": "first_step",
    "warming": "first_step",
    "steps": "productive",
    "evaluation": "evaluation",
    "checkpoint": "checkpoint",
    "finishing": "end",
    "beat": "down",
    "end": "down",
}
"""The part that begins with an event."""

#: Parts within steps, of which events have the seconds so far; the rest of a step is productive.
_WITHIN = ("data", "unknown")
#: Parts that only our own loop always reports.
_TOLD_BY_OURS = ("import", "groups", "load", "data", "evaluation", "checkpoint")


@dataclass(kw_only=True)
class Job:
    """A job so far.

    Attributes:
        seconds: seconds of each part.
        processes: how often it was started.
        steps: the last step that was kept.
        lost_steps: number of steps that were repeated.
        flops: total of the steps that were kept; None if unknown.
        lost_flops: total of the lost steps; None if unknown.
        recoveries: for each interruption that is over, the seconds from the last sign of life to the next step.
        unknown: in foreign loops, the parts that were not reported, whose time is in other parts; and ``flops`` if unknown.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    processes: int = 0
    steps: int = 0
    lost_steps: int = 0
    flops: int | None = None
    lost_flops: int | None = 0
    recoveries: list[float] = field(default_factory=list)
    unknown: tuple[str, ...] = ()

    @property
    def wall(self) -> float:
        """Seconds since the job's launch."""
        return sum(self.seconds.values())

    @property
    def interruptions(self) -> int:
        """How often it was restarted."""
        return max(0, self.processes - 1)

    @property
    def goodput(self) -> float | None:
        """Productive time over wall time."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else None

    @property
    def flops_kept(self) -> float | None:
        """FLOPs that were kept over all FLOPs; None if unknown."""
        if not self.flops or self.lost_flops is None:
            return None
        return self.flops / (self.flops + self.lost_flops)

    def metrics(self) -> dict[str, Any]:
        """The keys to log; unknown values are left out and named in ``goodput/unknown``."""
        known = {"goodput": self.goodput, "goodput/flops": self.flops_kept}
        numbers: dict[str, Any] = {f"goodput/seconds/{part}": seconds for part, seconds in self.seconds.items() if seconds}
        numbers |= {name: value for name, value in known.items() if value is not None}
        numbers["goodput/interruptions"] = self.interruptions
        if self.recoveries:
            numbers["goodput/mean_time_to_recover"] = fmean(self.recoveries)
        if self.unknown:
            numbers["goodput/unknown"] = list(self.unknown)
        return numbers


def job_of(events: Iterable[Event], now: float | None = None) -> Job:
    """The last job of a ledger.

    Args:
        events: in the order they were written.
        now: the present time of a running process; None if the last event is the end.
    """
    own = _with_kept(_of_last_job(list(events)))
    job = Job(processes=sum(event["event"] == "process" for event in own))
    if not own:
        return job
    spans = _spans(own, now)
    _lose(job, own, spans)
    for span in spans:
        job.seconds[span.part] += span.seconds
    totals = _totals(own)
    job.steps = max((event["step"] for event in _lived(own) if "step" in event), default=0)
    job.flops = totals.get(max(totals)) if totals else None
    job.recoveries = _recoveries(own)
    if any(event.get("host") for event in own):
        untold = {part: not job.seconds[part] for part in _TOLD_BY_OURS}
        untold |= {"lost": job.lost_steps > 0 and not job.seconds["lost"], "flops": job.flops_kept is None}
        job.unknown = tuple(part for part, is_untold in untold.items() if is_untold)
    return job


def _of_last_job(events: list[Event]) -> list[Event]:
    """The events since a process of another launcher began at step 0."""
    first, launcher, place = 0, None, 0
    for i, event in enumerate(events):
        if event["event"] == "process":
            place = i - 1 if i and events[i - 1]["event"] == "launched" else i
        if event["event"] == "training":
            if event["step"] == 0 and event.get("launcher") != launcher:
                first = place
            launcher = event.get("launcher")
    return events[first:]


def _with_kept(events: list[Event]) -> list[Event]:
    """The events, and one for each step that a process resumed from and for which it found the time it was reached."""
    kept = [{**event["kept"], "event": "steps"} for event in events if event["event"] == "training" and "kept" in event]
    return sorted([*events, *(event for event in kept if event["time"] > events[0]["time"])], key=itemgetter("time"))


@dataclass
class _Span:
    part: str
    seconds: float
    start: float


def _spans(events: Sequence[Event], now: float | None) -> list[_Span]:
    """The parts that follow each event; waits for batches and unknown time are separate from productive time."""
    spans = []
    last = {"event": "beat", "time": events[-1]["time"] if now is None else now}
    known = [event for event in events if event["event"] in _FOLLOWS]
    for event, following in pairwise([*known, last]):
        part, seconds = _FOLLOWS[event["event"]], following["time"] - event["time"]
        if event["event"] == "process" and following["event"] != "imported":
            part = "start_up"
        for other in _WITHIN if part == "productive" else ():
            taken = min(seconds, max(0.0, following.get(other, 0.0) - event.get(other, 0.0)))
            spans.append(_Span(other, taken, event["time"]))
            seconds -= taken
        spans.append(_Span(part, seconds, event["time"]))
    return spans


def _losses(events: Sequence[Event]) -> Iterator[tuple[int, int, int]]:
    """For each start that went back: its index, the step that was reached before it, and the step it went back to."""
    reached = 0
    for place, event in enumerate(events):
        if event["event"] == "training":
            if event["step"] < reached:
                yield place, reached, event["step"]
            reached = event["step"]
        reached = max(reached, event.get("step", 0))


def _lose(job: Job, events: Sequence[Event], spans: Sequence[_Span]) -> None:
    """Relabel the spans of steps that a restart repeated, and count the steps."""
    totals = {0: 0, **_totals(events)}
    for place, reached, resumed in _losses(events):
        job.lost_steps += reached - resumed
        kept, lost = _times_of(events[:place], resumed)
        for span in spans:
            if kept <= span.start < events[place]["time"] and span.part in ("productive", *_WITHIN):
                span.part = "lost" if span.start >= lost else "unknown"
        if job.lost_flops is not None:
            known = reached in totals and resumed in totals
            job.lost_flops = job.lost_flops + totals[reached] - totals[resumed] if known else None


def _times_of(events: Sequence[Event], step: int) -> tuple[float, float]:
    """The time until which all work was on steps up to this one, and the time from which all work was on later steps.

    They are equal if there is an event of this step.
    """
    if not step:
        return 0.0, 0.0
    if exact := [event["time"] for event in events if event.get("step") == step]:
        return max(exact), max(exact)
    before = max((event["time"] for event in events if event.get("step", step) < step), default=0.0)
    return before, min((event["time"] for event in events if event.get("step", 0) > step and event["time"] > before), default=inf)


def _totals(events: Iterable[Event]) -> dict[int, int]:
    """Total FLOPs by step, as far as events have them; a repeated step has the same total."""
    return {event["step"]: event["flops"] for event in events if event.get("flops") is not None}


def _lived(events: Sequence[Event]) -> Sequence[Event]:
    """The events of the last process that trained: earlier work is in its checkpoint, or lost."""
    places = [place for place, event in enumerate(events) if event["event"] == "training"]
    return events[places[-1] :] if places else []


def _recoveries(events: Sequence[Event]) -> list[float]:
    found, alive = [], None
    for before, event in pairwise(events):
        if event["event"] in ("process", "launched") and before["event"] != "launched":
            alive = before["time"]
        if event["event"] == "steps" and alive is not None:
            found.append(event["time"] - alive)
            alive = None
    return found


def to_redo(events: Iterable[Event], step: int) -> list[int]:
    """Steps after ``step`` at which a process was killed, and whose total FLOPs are not known yet."""
    own = _of_last_job(list(events))
    # The asking process has not written the event of its own start yet.
    asks = {"event": "training", "step": step}
    return sorted({reached for _, reached, _ in _losses([*own, asks]) if reached > step} - _totals(own).keys())


# ---- files -------------------------------------------------------------------------------------------------------------


def read_events(path: Path) -> list[Event]:
    """The events of a ledger, without invalid lines and without an unfinished last one. Empty if there is no file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    return [event for line in lines if line.endswith(b"\n") and (event := event_of(line)) is not None]


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None if the line is invalid."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    named = isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("time"), (int, float))
    counted = named and isinstance(event.get("step", None if event["event"] == "training" else 0), int)
    return event if counted and isfinite(event["time"]) else None


def read_beats(path: Path) -> dict[int, Event]:
    """The last signs of life, by step. Empty if there is no file."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    found = (event_of(text[place : place + BEAT]) for place in range(0, len(text), BEAT))
    return {event["step"]: event for event in found if event is not None and "step" in event}


def last_beat(events: Sequence[Event], beats: Mapping[int, Event]) -> list[Event]:
    """The last sign of life, if it came after the last event; else nothing."""
    newest = sorted(beats.values(), key=itemgetter("time"))[-1:]
    return [beat for beat in newest if not events or beat["time"] > events[-1]["time"]]
