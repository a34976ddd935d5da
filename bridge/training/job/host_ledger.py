"""The ledger of a job whose training loop is not ours, written from the loop's events: it has fewer kinds of entries.

Unreported time between steps is ``unknown``; all time before training starts is one part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bridge.metrics.goodput import Job
from bridge.metrics.observed import waited_seconds
from bridge.metrics.place import Place
from bridge.training.job.agree import from_rank
from bridge.training.job.ledger import JobLedger


class HostLedger:
    """Writes the ledger on the last rank; without a folder it writes nothing.

    Args:
        folder: the folder of ``job.jsonl``, the same on every rank and in every start of the job.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._ledger: JobLedger | None = None
        self._begun = self._stepped = False
        self._aside = ""
        """What the loop is doing instead of training: ``evaluation``, ``checkpoint`` or nothing."""
        self._left: tuple[float, float] | None = None
        """The time at which the last step ended, and the total seconds of waiting for batches at that time."""
        self.redone: list[int] = []
        """Future steps at which ``tell`` needs the total FLOPs; the same on every rank."""

    def begin(self, place: Place | None, step: int, flops: int | None) -> None:
        """Training starts after ``step`` steps and ``flops`` FLOPs. Waits for all ranks."""
        if self._folder is None or self._begun or place is None or place.rank < 0:
            return
        self._begun = True
        wanted: list[int] = []
        if place.is_last:
            self._ledger = JobLedger(Path(self._folder), waited_seconds)
            self._ledger.open()
            wanted = self._ledger.to_redo(step)
            self._ledger.begin(step, flops=flops, host=True)
        self.redone = wanted if place.world == 1 else from_rank(wanted, place.world - 1, place.group)

    def enter_step(self, step: int) -> None:
        """A training step begins, after ``step`` completed ones."""
        if self._ledger is None:
            return
        if self._aside:
            self.back(step)
        self._count_between()

    def leave_step(self, step: int) -> None:
        """A training step is over; ``step`` steps are completed."""
        if self._ledger is not None:
            self._stepped = True
            self._ledger.beat(step)
            self._leave()

    def tell(self, step: int, total: Callable[[], int | None]) -> None:
        """Call after each step, on every rank: records the total FLOPs at steps where an earlier process was killed."""
        if step in self.redone:
            flops = total()
            if self._ledger is not None:
                self._ledger.mark("steps", step=step, flops=flops)

    def aside(self, what: str, step: int, when: float | None = None, flops: int | None = None) -> None:
        """An ``evaluation`` or a ``checkpoint`` begins."""
        if self._ledger is not None and what != self._aside:
            self._count_between()
            self._aside = what
            self._ledger.mark(what, when, step=step, **({} if flops is None else {"flops": flops}))

    def back(self, step: int) -> None:
        """The evaluation or checkpoint is over."""
        if self._ledger is not None and self._aside:
            self._aside = ""
            self._ledger.mark("steps" if self._stepped else "warming", step=step)
            self._ledger.sync()
            self._leave()

    def end(self, step: int, flops: int | None) -> Job | None:
        """Training is over. Returns the job so far on the rank that writes, None on others."""
        if self._ledger is None:
            return None
        self._count_between()
        self._ledger.mark("finishing", step=step, flops=flops)
        return self._ledger.job()

    def close(self, step: int) -> None:
        """The training of this process has ended or failed."""
        if self._ledger is not None:
            self._count_between()
            self._ledger.mark("end", step=step)
            self._ledger.close()
            self._ledger = None

    def _leave(self) -> None:
        self._left = time.time(), waited_seconds()

    def _count_between(self) -> None:
        """Count the time since the last step as unknown, except for waiting for batches."""
        if self._left is not None and self._ledger is not None:
            left, waited = self._left
            self._ledger.unknown += max(0.0, time.time() - left - (waited_seconds() - waited))
        self._left = None
