"""The progress of traces that take longer than a second."""

from __future__ import annotations

import sys
import time

#: Seconds after which progress is shown.
_PATIENCE = 1.0


class Progress:
    """One line on a terminal, which is erased at the end; no output anywhere else.

    Args:
        name: the name of the module that is traced.
    """

    def __init__(self, name: str) -> None:
        self._name, self._start, self._runs, self._shown = name, time.monotonic(), 0, False

    def step(self) -> None:
        """Note that the module runs once more."""
        self._runs += 1
        if time.monotonic() - self._start > _PATIENCE and sys.stderr.isatty():
            self._shown = True
            print(f"\rtracing {self._name}: run {self._runs}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Erase the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
