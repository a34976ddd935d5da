"""What Megatron-LM and Megatron-Bridge say of their own speed, from a finished job's log, to stand beside what was counted.

Read are lines of the standard output, ``iteration  10/ 100 | ... | elapsed time per iteration (ms): 812.3 | throughput per GPU
(TFLOP/s/GPU): 401.2 |``, and offline W&B runs, where Megatron-LM logs ``throughput`` and Megatron-Bridge
``throughput/tflops/device``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bridge.flops import ConfigError
from bridge.metrics.keys import PREFIX
from bridge.report.run_file import Row, Run, read_run

FLOPS, STEP_TIME = "host/tflops/device", "host/step_time"

_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*\d+ \|")
_NUMBER = r"\s*([0-9.]+(?:[eE][+-]?\d+)?)"
_FIELDS: dict[str, tuple[re.Pattern[str], Callable[[float], float]]] = {
    FLOPS: (re.compile(r"throughput per GPU \(TFLOP/s/GPU\):" + _NUMBER), lambda rate: rate),
    STEP_TIME: (re.compile(r"elapsed time per iteration \(ms\):" + _NUMBER), lambda milliseconds: milliseconds / 1e3),
}
#: The same in a W&B run that is theirs; the first that is there.
_LOGGED = ("throughput", "throughput/tflops/device")


def put_beside(run: Run, log: Path) -> None:
    """Add their rates to the rows of a run, step by step, under names that say whose they are.

    Raises:
        ConfigError: there is no such file, or nothing of the kind in it.
    """
    found = _read(log)
    if not found:
        raise ConfigError(
            f"--beside {log} holds no rates of a Megatron loop; name its standard output, of a job with --log-throughput, or its "
            "offline W&B run"
        )
    rows = {row["step"]: row for row in run.rows}
    for step, values in found.items():
        rows.setdefault(step, {"step": step}).update(values)
    run.take(rows.values())


def tell_apart(run: Run) -> None:
    """A W&B run that another loop opened: ours is under ``bridge/`` there and keeps its names, theirs gets one that says so."""
    if not any(PREFIX + "step" in row for row in run.rows):
        return
    rows: dict[float, Row] = {}
    for row in run.rows:
        ours = {key.removeprefix(PREFIX): value for key, value in row.items() if key.startswith(PREFIX)}
        theirs = {key: value for key, value in row.items() if not key.startswith((PREFIX, "throughput"))}
        if (key := next((key for key in _LOGGED if key in row), None)) is not None:
            theirs[FLOPS] = row[key]
        for values in (theirs, ours):
            if "step" in values:
                rows.setdefault(values["step"], {}).update(values)
    run.take(rows.values())
    run.facts |= {key.removeprefix(PREFIX): value for key, value in run.facts.items() if key.startswith(PREFIX)}


def _read(log: Path) -> dict[int, dict[str, float]]:
    if log.is_dir() or log.suffix == ".wandb":
        file = log if log.is_file() else next(iter(sorted(log.rglob("run-*.wandb"))), log)
        return dict(_logged(read_run(file, bounded=False)))
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return dict(_printed(lines))
    except OSError as error:
        raise ConfigError(f"--beside {log} cannot be read: {error.strerror}") from None


def _printed(lines: Any) -> Iterator[tuple[int, dict[str, float]]]:
    for line in lines:
        if match := _ITERATION.search(line):
            values = {
                name: convert(float(found[1]))
                for name, (pattern, convert) in _FIELDS.items()
                if (found := pattern.search(line)) is not None
            }
            if values:
                yield int(match[1]), values


def _logged(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    key = next((key for key in _LOGGED if key in run.names()), None)
    for row in run.rows:
        if key in row:
            yield int(row["step"]), {FLOPS: float(row[key])}
