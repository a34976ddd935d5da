"""The speed that Megatron-LM and Megatron-Bridge report, read from a finished job's log, for comparison with the counts.

It reads lines of the standard output, ``iteration  10/ 100 | ... | elapsed time per iteration (ms): 812.3 | throughput per GPU
(TFLOP/s/GPU): 401.2 |``, offline W&B runs and TensorBoard's event files, where Megatron-LM logs ``throughput`` and
Megatron-Bridge ``throughput/tflops/device``, both ``iteration-time``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bridge.flops import ConfigError
from bridge.metrics.keys import PREFIX
from bridge.report.run_file import LoggedRow, RecordedRun, read_run

FLOPS, STEP_TIME = "host/tflops/device", "host/step_time"

_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*\d+ \|")
_NUMBER = r"\s*([0-9.]+(?:[eE][+-]?\d+)?)"
_FIELDS: dict[str, tuple[re.Pattern[str], Callable[[float], float]]] = {
    FLOPS: (re.compile(r"throughput per GPU \(TFLOP/s/GPU\):" + _NUMBER), lambda rate: rate),
    STEP_TIME: (re.compile(r"elapsed time per iteration \(ms\):" + _NUMBER), lambda milliseconds: milliseconds / 1e3),
}
#: Our key -> its names in their W&B runs and event files; the first one present is used.
_LOGGED = {FLOPS: ("throughput", "throughput/tflops/device"), STEP_TIME: ("iteration-time",)}


def put_beside(run: RecordedRun, log: Path) -> None:
    """Add their rates to the rows of a run, step by step, under keys that begin with ``host/``.

    Raises:
        ConfigError: the file does not exist or holds no such rates.
    """
    found = _read(log)
    if not found:
        raise ConfigError(
            f"--beside {log} holds no rates of a Megatron loop; name the standard output of a job with --log-throughput, its "
            "offline W&B run, or a folder of its TensorBoard files (of a job with --log-timers-to-tensorboard)"
        )
    rows = {row["step"]: row for row in run.rows}
    for step, values in found.items():
        rows.setdefault(step, {"step": step}).update(values)
    run.take(rows.values())


def tell_apart(run: RecordedRun) -> None:
    """In a W&B run that another loop opened, remove the prefix ``bridge/`` from our keys and rename its rates to ``host/...``."""
    if PREFIX + "step" not in run.columns:
        return
    rows: dict[float, LoggedRow] = {}
    for row in run.rows:
        ours = {key.removeprefix(PREFIX): value for key, value in row.items() if key.startswith(PREFIX)}
        theirs = {key: value for key, value in row.items() if not key.startswith((PREFIX, "throughput"))}
        theirs |= _named(row)
        for values in (theirs, ours):
            if "step" in values:
                rows.setdefault(values["step"], {}).update(values)
    run.take(rows.values())
    run.facts |= {key.removeprefix(PREFIX): value for key, value in run.facts.items() if key.startswith(PREFIX)}


def _read(log: Path) -> dict[int, dict[str, float]]:
    if runs := _below(log, "*.wandb"):
        rows = read_run(runs[0], bounded=False).rows
        return {int(row["step"]): named for row in rows if (named := _named(row))}
    if events := _below(log, "*tfevents*"):
        return _logged(events)
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


def _below(log: Path, pattern: str) -> list[Path]:
    """The file itself if its name matches, or all matching files in a folder."""
    return sorted(log.rglob(pattern)) if log.is_dir() else [log] if log.match(pattern) else []


def _named(row: LoggedRow) -> dict[str, float]:
    """The speeds in their row, under our keys."""
    found = {name: next((key for key in keys if key in row), None) for name, keys in _LOGGED.items()}
    return {name: float(row[key]) for name, key in found.items() if key is not None}


def _logged(files: list[Path]) -> dict[int, dict[str, float]]:
    """Rows of TensorBoard's files; later files override earlier ones."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ConfigError(f"--beside {files[0]} is TensorBoard's; pip install tensorboard") from None
    rows: dict[int, LoggedRow] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for key in {key for keys in _LOGGED.values() for key in keys}.intersection(events.Tags()["scalars"]):
            for event in events.Scalars(key):
                rows.setdefault(event.step, {})[key] = float(f"{event.value:.7g}")  # a 32-bit float has 7 digits
    return {step: _named(row) for step, row in rows.items()}
