"""A host's own loggers as a tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class HostLoggers:
    """Writes rows to the host's loggers, on the ranks that have them; the host closes what it has opened.

    Args:
        write: logs metrics of a step.
    """

    def __init__(self, write: Callable[[dict[str, Any], int], Any]) -> None:
        self._write = write

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._write(dict(metrics), step)

    def summary(self, facts: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...

    def how_to_look(self) -> list[str]:
        return []
