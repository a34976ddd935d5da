"""The interface of a tracker, and all trackers of a run as one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any, Protocol

from bridge.metrics.trackers.secrets import without_login

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

#: Number of rows that wait for more metrics of their step before they are written; see ``Trackers.log``.
OPEN_ROWS = 2


class Tracker(Protocol):
    """A destination for complete rows, in ascending order of steps."""

    def log(self, metrics: Metrics, step: int) -> None:
        """Write one row."""

    def summary(self, facts: Metrics) -> None:
        """Write facts about the whole run; further calls add and replace."""

    def close(self) -> None:
        """Write the rest, and end."""

    def how_to_look(self) -> list[str]:
        """Lines for the user: where the results are, and the command that shows them."""


class Trackers:
    """All trackers of a run, as one. A row may come in parts, and a tracker that fails is dropped with one warning.

    ``log`` works like W&B's with ``step`` and ``commit``: parts of the same step become one row, which is written at
    ``commit``, or once more than ``OPEN_ROWS`` rows are open.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), *, run_id: str | None = None) -> None:
        self._trackers = list(trackers)
        self._rows: dict[int, dict[str, Any]] = {}
        self.run_id = run_id
        """The id by which W&B and MLflow resume this run, to be kept in the checkpoint; None without trackers."""

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, metrics: Metrics, step: int, commit: bool = False) -> None:
        """Add metrics to the row of ``step``; ``commit`` writes it, and all rows before it."""
        self._rows.setdefault(step, {}).update(metrics)
        if commit:
            self._write([open_step for open_step in sorted(self._rows) if open_step <= step])
        else:
            self._write(sorted(self._rows)[:-OPEN_ROWS])

    def summary(self, facts: Metrics) -> None:
        """Constants of the run, and its results."""
        self._each(methodcaller("summary", facts))

    def close(self) -> None:
        """Write the open rows and end; further calls do nothing."""
        self._write(sorted(self._rows))
        self._each(_close)
        self._trackers = []

    def how_to_look(self) -> list[str]:
        """Where the results are."""
        lines: list[str] = []
        self._each(lambda tracker: lines.extend(tracker.how_to_look()))
        return lines

    def _write(self, steps: Sequence[int]) -> None:
        for step in steps:
            if row := self._rows.pop(step):
                self._each(methodcaller("log", row, step))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                logger.warning("%s stopped: %s. Training continues without it.", type(tracker).__name__, first_line(error))
                quietly(functools.partial(_close, tracker))


_close = methodcaller("close")


def quietly(call: Callable[[], Any]) -> None:
    """Call something whose failure no longer matters."""
    try:
        call()
    except Exception:
        logger.debug("closing a broken tracker", exc_info=True)


def first_line(error: BaseException) -> str:
    """What an exception says, on one line and without a login."""
    return without_login(next(iter(str(error).splitlines()), "") or repr(error))
