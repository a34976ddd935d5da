"""That a trace is under way, where it takes more than a moment."""

from __future__ import annotations

import sys
import time

#: Seconds after which progress is shown.
_PATIENCE = 1.0


class Progress:
    """One line on a terminal, which goes away at the end; elsewhere nothing.

    Args:
        name: of what is traced.
    """

    def __init__(self, name: str) -> None:
        self._name, self._start, self._runs, self._shown = name, time.monotonic(), 0, False

    def step(self) -> None:
        """It runs once more."""
        self._runs += 1
        if time.monotonic() - self._start > _PATIENCE and sys.stderr.isatty():
            self._shown = True
            print(f"\rtracing {self._name}: run {self._runs}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
