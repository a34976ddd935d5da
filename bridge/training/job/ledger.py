"""Writes down the life of a job, so that it can be read after any end: an append-only file of JSON lines, on one rank.

``job.jsonl`` stands beside the checkpoints, since these outlive a process.  Each event is one write of a whole line; a step is
one write of a few bytes in place (``job.beat``), which the next process takes into the ledger as the last sign of life of the
one before.  A process that is killed loses none of it; a machine that is lost may lose what was not synced, which is done at
checkpoints.  What cannot be written is one warning, and training continues.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.metrics.goodput import Event, Job, job_of, to_redo
from bridge.training.job import restart

logger = logging.getLogger(__name__)

FILE, BEAT = "job.jsonl", "job.beat"
#: Characters of a sign of life.
_BEAT = 128


class JobLedger:
    """The ledger of the job that this process belongs to; on the rank that writes.

    Args:
        folder: of the checkpoints, or of the run; None: nothing is kept.
        waited: seconds that this process has waited for batches so far.
    """

    def __init__(self, folder: Path | None = None, waited: Callable[[], float] = lambda: 0.0) -> None:
        self.events: list[Event] = []
        self._waited = waited
        self._folder = folder
        self._files: dict[str, int] = {}
        self._before: list[tuple[str, float, dict[str, Any]]] = []
        self._failed = folder is None
        self._step: int | None = None

    # ---- writing ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read what is there, take over the last sign of life, and write what this process has remembered so far."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / FILE
            self.events = read_events(path)
            for name, flags in ((FILE, os.O_APPEND), (BEAT, 0)):
                self._files[name] = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | flags, 0o644)
            _mend(self._files[FILE])
            beat = _parse(os.pread(self._files[BEAT], _BEAT, 0))
            os.ftruncate(self._files[BEAT], 0)
        except OSError as error:
            self._fail(error)
            return
        if beat and (not self.events or beat["time"] > self.events[-1]["time"]):
            self._write(beat)
        launched = started(os.getppid()) if restart.launcher() else None
        if launched is not None and not _knows(self.events, launched):
            self.mark("launched", launched)
        self.mark("process", started() or _IMPORTED)
        for event, when, facts in self._before:
            self.mark(event, when, **facts)
        self._before.clear()

    def remember(self, event: str, **facts: Any) -> None:
        """An event before the ledger is open."""
        self._before.append((event, time.time(), facts))

    def mark(self, event: str, when: float | None = None, **facts: Any) -> None:
        """Something begins."""
        self._write({"event": event, "time": time.time() if when is None else when, "data": self._waited(), **facts})

    def begin(self, step: int, **facts: Any) -> None:
        """Training begins after ``step``."""
        self._step = step
        self.mark("training", step=step, launcher=launcher(), **facts)

    def beat(self, step: int) -> None:
        """A step is over."""
        if self._failed or BEAT not in self._files:
            return
        if self._step is not None:  # the first of this process
            self._step = None
            self.mark("steps", step=step)
        line = json.dumps({"event": "beat", "time": time.time(), "step": step, "data": self._waited()})
        self._attempt(lambda: os.pwrite(self._files[BEAT], f"{line:<{_BEAT - 1}}\n".encode(), 0))

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


def read_events(path: Path) -> list[Event]:
    """The events of a ledger; a last line without its end, and lines that are none, are left out. Empty without a file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    return [event for line in lines if line.endswith(b"\n") and (event := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("time"), (int, float))
    return event if whole else None


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
