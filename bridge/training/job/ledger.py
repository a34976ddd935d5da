"""Records the life of a job in an append-only file of JSON lines, on one rank, so that it can be read after any kind of end.

``job.jsonl`` is beside the checkpoints, because these outlive a process.  Each event is one write of a whole line.  Each step is
one write of a few bytes in place (``job.beat``, a ring of the last steps).  The next process copies from it into the ledger the
last sign of life of the process before, and the time at which that one reached the step from which training continues.  A killed
process loses nothing; a lost machine may lose what was written since the last checkpoint, where files are synced.  If a write
fails, there is one warning, and training continues.
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

#: How often this process has opened each ledger, and its writer: the latest one, since a training may end without closing.
_opened: Counter[Path] = Counter()
_writing: WeakValueDictionary[Path, JobLedger] = WeakValueDictionary()


class JobLedger:
    """The ledger of the job of this process, on the rank that writes.

    Args:
        folder: the folder of the checkpoints or of the run; None: nothing is written.
        waited: returns the seconds for which this process has waited for batches so far.
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
        """Unreported seconds between steps so far, of this process."""

    # ---- writing ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read the existing ledger, add the previous process's last sign of life, and write what was remembered so far."""
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
            _end_last_line(self._files[FILE])
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
        # A second training in this process begins where the first one ended.
        self.mark("process", max([started() or _IMPORTED, *(event["time"] for event in self.events[-1:])]))
        for event, when, facts in self._before:
            self.mark(event, when, **facts)
        self._before.clear()

    def remember(self, event: str, **facts: Any) -> None:
        """Keep an event until the ledger is open."""
        self._before.append((event, time.time(), facts))

    def mark(self, event: str, when: float | None = None, **facts: Any) -> None:
        """Write an event: a part of the job begins."""
        self._write({"event": event, "time": time.time() if when is None else when, **self._sums(), **facts})

    def _sums(self) -> dict[str, float]:
        """Seconds within steps so far, by part."""
        return {"data": self._waited()} | ({"unknown": self.unknown} if self.unknown else {})

    def begin(self, step: int, **facts: Any) -> None:
        """Training begins after ``step``."""
        self._step = step
        if step in self._beats and not any(event.get("step") == step for event in self.events):
            facts["kept"] = self._beats[step]
        self.mark("training", step=step, launcher=self._launcher(), **facts)

    def _launcher(self) -> str:
        """What started this training; a second training in a process counts as started anew."""
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
        """Sync the ledger to the disk."""
        if not self._failed and self._files:
            self._attempt(lambda: os.fsync(self._files[FILE]))

    def close(self) -> None:
        """Close the files; nothing is written afterwards."""
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
        """The job so far; None if nothing is written."""
        return None if self._failed else job_of(self.events, time.time())

    def to_redo(self, step: int) -> list[int]:
        """Steps at which earlier processes were killed, whose total FLOPs must be recorded when training reaches them again."""
        return to_redo(self.events, step)


_IMPORTED = time.time()


def _end_last_line(number: int) -> None:
    """End a torn last line, so that the next line is whole."""
    size = os.fstat(number).st_size
    if size and os.pread(number, 1, size - 1) != b"\n":
        os.write(number, b"\n")


def _knows(events: list[Event], launch: float) -> bool:
    """Whether the ledger has events since this start of a launcher; then the time since is down time."""
    return any(event["time"] >= launch - 1 for event in events)


def launcher() -> str:
    """What started the processes of this job: a scheduler's job, torchrun's process, or nothing but this process."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm {job}"
    known = restart.launcher()
    return " ".join(known) if known else f"process {os.getpid()}"


def started(process: int | None = None) -> float | None:
    """The start of a process in seconds since 1970, to a hundredth of a second; None if the system does not provide it."""
    try:
        status = Path(f"/proc/{process or 'self'}/stat").read_text()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    ticks = int(status.rpartition(")")[2].split()[19])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
