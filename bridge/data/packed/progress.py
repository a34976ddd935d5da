"""A progress bar for files that take long to read, on standard error of rank 0 if that is a terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

#: Seconds before anything is shown.
DELAY_S = 1.0


class FileProgress:
    """Shows how much of a file has been read, if that takes longer than ``DELAY_S`` seconds.

    Args:
        path: the file, whose name is shown.
        size: bytes to read.
    """

    def __init__(self, path: str, size: int):
        self._name, self._size = os.path.basename(path.rstrip("/")), size
        self._start = time.monotonic()
        self._is_wanted = os.environ.get("RANK", "0") == "0" and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def update(self, done: float, doing: str = "Reading") -> None:
        """Show that ``done`` bytes have been read."""
        if not self._is_wanted or time.monotonic() - self._start < DELAY_S:
            return
        if self._bar is None:
            self._open()
        self._bar.update(self._task, completed=done, description=f"{doing} {self._name}")

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self._bar.add_task("", total=self._size)
        self._bar.start()

    def __enter__(self) -> FileProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
