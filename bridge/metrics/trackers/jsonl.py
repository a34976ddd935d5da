"""JSON lines: a file that any program can read, in which integers keep all digits."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from bridge.metrics.trackers.plain import plain
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Metrics

#: The usual name of the file; commands take its folder too, as the run's.
FILE_NAME = "metrics.jsonl"


class JsonlTracker:
    """One JSON object per log point, ``{"step": ..., "throughput/...": ...}``; facts go to ``<name>.summary.json``.

    Every row is one write of a whole line, so a killed run leaves at most one torn line, which the next start removes.

    Args:
        path: the file; missing folders are made.
        step: the step training starts after. 0: a new run, an old file is kept as ``<path>.previous``. Else the rows
            after that step are dropped, since these steps will be trained again.
    """

    def __init__(self, path: os.PathLike[str] | str, *, step: int = 0) -> None:
        self.path = Path(path)
        self._summary_path = summary_path(self.path)
        self._facts: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():  # a device or a pipe is written to as it is
            if step:
                self._forget_rows_after(step)
            elif self.path.stat().st_size:
                self.path.replace(self.path.with_name(self.path.name + ".previous"))
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def _forget_rows_after(self, step: int) -> None:
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(row, dict) and row.get("step", 0) <= step:
                kept.append(line)
        _write_atomically(self.path, b"".join(kept))

    def log(self, metrics: Metrics, step: int) -> None:
        line = (json.dumps({"step": step, **plain(metrics)}) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(f"{self.path}: a line was written in part; the disk is full")

    def summary(self, facts: Metrics) -> None:
        self._facts.update(without_secrets(plain(facts)))
        if not self.path.exists() or self.path.is_file():
            _write_atomically(self._summary_path, json.dumps(self._facts, indent=2).encode())

    def close(self) -> None:
        self._file.close()

    def how_to_look(self) -> list[str]:
        run = self.path.parent if self.path.name == FILE_NAME else self.path
        return [f"metrics: {self.path}", f"report: bridge report {shlex.quote(str(run))}"]


def summary_path(path: Path) -> Path:
    """The file with the facts of a file of rows."""
    return path.with_suffix(".summary.json")


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
