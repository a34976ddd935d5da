"""Writes down the life of a job, so that it can be read after any end: an append-only file of JSON lines, on one rank.

``job.jsonl`` stands beside the checkpoints, since these outlive a process.  Each event is one write of a whole line; a step is
one write of a few bytes in place (``job.beat``, where the last steps have their places in turn), of which the next process takes
into the ledger the last sign of life of the one before, and when that had reached the step that training goes on from.  A
process that is killed loses none of it; a machine that is lost may lose what was not synced, which is done at checkpoints.  What
cannot be written is one warning, and training continues.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from bridge.metrics.goodput import (
    BEAT,
    BEATS,
    BEATS_KEPT,
    FILE,
    Event,
    Job,
    job_of,
    last_beat,
    read_beats,
    read_events,
    to_redo,
)
from bridge.training.job import restart

logger = logging.getLogger(__name__)

#: How often this process has opened each ledger, and who writes it: the last one, since a training may break off without a word.
_opened: Counter[Path] = Counter()
_writing: WeakValueDictionary[Path, JobLedger] = WeakValueDictionary()


class JobLedger:
    """The ledger of the job that this process belongs to; on the rank that writes.

    Args:
        folder: of the checkpoints, or of the run; None: nothing is kept.
        waited: seconds that this process has waited for batches so far.
    """

    def __init__(self, folder: Path | None = None, waited: Callable[[], float] = lambda: 0.0) -> None:
        self.events: list[Event] = []
        self._waited = waited
        self._path = folder and (folder / FILE).absolute()
        self._files: dict[str, int] = {}
        self._before: list[tuple[str, float, dict[str, Any]]] = []
        self._failed = folder is None
        self._step: int | None = None
        self._beats: dict[int, Event] = {}
        self.unknown = 0.0
        """Seconds between steps so far of which the loop has told nothing; of this process."""

    # ---- writing ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read what is there, take over the last sign of life, and write what this process has remembered so far."""
        if self._path is None:
            return
        if (before := _writing.get(self._path)) is not None:
            before.close()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.events = read_events(self._path)
            self._beats = read_beats(self._path.with_name(BEATS))
            for name, flags in ((FILE, os.O_APPEND), (BEATS, 0)):
                self._files[name] = os.open(self._path.with_name(name), os.O_RDWR | os.O_CREAT | flags, 0o644)
            _mend(self._files[FILE])
        except OSError as error:
            self._fail(error)
            return
        _opened[self._path] += 1
        _writing[self._path] = self
        for beat in last_beat(self.events, self._beats):
            self._write(dict(beat))
        launched = started(os.getppid()) if restart.launcher() else None
        if launched is not None and not _knows(self.events, launched):
            self.mark("launched", launched)
        # Of a second training in this process, the beginning is what came before it.
        self.mark("process", max([started() or _IMPORTED, *(event["time"] for event in self.events[-1:])]))
        for event, when, facts in self._before:
            self.mark(event, when, **facts)
        self._before.clear()

    def remember(self, event: str, **facts: Any) -> None:
        """An event before the ledger is open."""
        self._before.append((event, time.time(), facts))

    def mark(self, event: str, when: float | None = None, **facts: Any) -> None:
        """Something begins."""
        self._write({"event": event, "time": time.time() if when is None else when, **self._sums(), **facts})

    def _sums(self) -> dict[str, float]:
        """Seconds within steps so far, by the part that they are of."""
        return {"data": self._waited()} | ({"unknown": self.unknown} if self.unknown else {})

    def begin(self, step: int, **facts: Any) -> None:
        """Training begins after ``step``."""
        self._step = step
        if step in self._beats and not any(event.get("step") == step for event in self.events):
            facts["kept"] = self._beats[step]
        self.mark("training", step=step, launcher=self._launcher(), **facts)

    def _launcher(self) -> str:
        """What started this training; a second one in a process is not its first one, started again."""
        number = _opened[self._path] if self._path else 0
        return launcher() + (f", training {number}" if number > 1 else "")

    def beat(self, step: int) -> None:
        """A step is over."""
        if self._failed or BEATS not in self._files:
            return
        if self._step is not None:  # the first of this process
            self._step = None
            self.mark("steps", step=step)
        sums = "".join(f', "{part}": {seconds:.6f}' for part, seconds in self._sums().items())
        line = f'{{"event": "beat", "time": {time.time():.6f}, "step": {step}{sums}}}'
        place = step % BEATS_KEPT * BEAT
        self._attempt(lambda: os.pwrite(self._files[BEATS], f"{line:<{BEAT - 1}}\n".encode(), place))

    def sync(self) -> None:
        """Keep what was written, whatever happens to the machine."""
        if not self._failed and self._files:
            self._attempt(lambda: os.fsync(self._files[FILE]))

    def close(self) -> None:
        """This process is through."""
        for number in self._files.values():
            os.close(number)
        self._files, self._failed = {}, True

    def _write(self, event: dict[str, Any]) -> None:
        if self._failed:
            return
        self.events.append(event)
        if FILE in self._files:
            line = (json.dumps(event) + "\n").encode()
            self._attempt(lambda: os.write(self._files[FILE], line))

    def _attempt(self, write: Any) -> None:
        if self._failed:
            return
        try:
            write()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = True
        logger.warning("%s cannot be written (%s): the job's goodput is unknown from here on", FILE, error.strerror)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def job(self) -> Job | None:
        """The job so far; None where nothing is kept."""
        return None if self._failed else job_of(self.events, time.time())

    def to_redo(self, step: int) -> list[int]:
        """Where processes before this one were killed: steps whose FLOPs are to be told when they are reached again."""
        return to_redo(self.events, step)


_IMPORTED = time.time()


def _mend(number: int) -> None:
    """A torn last line gets an end, so that the next one is whole."""
    size = os.fstat(number).st_size
    if size and os.pread(number, 1, size - 1) != b"\n":
        os.write(number, b"\n")


def _knows(events: list[Event], launch: float) -> bool:
    """Whether this start of a launcher, or a later one, is in the ledger: then what came since is down time."""
    return any(event["time"] >= launch - 1 for event in events)


def launcher() -> str:
    """What starts the processes of this job: the scheduler's job, torchrun's process, or somebody this process alone."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm {job}"
    known = restart.launcher()
    return " ".join(known) if known else f"process {os.getpid()}"


def started(process: int | None = None) -> float | None:
    """When a process began, seconds since 1970; None where the system does not tell. To a hundredth of a second."""
    try:
        status = Path(f"/proc/{process or 'self'}/stat").read_text()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    ticks = int(status.rpartition(")")[2].split()[19])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
