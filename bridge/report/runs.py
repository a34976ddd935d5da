"""Finds a run by its folder, its metrics.jsonl, or the folder or file of a W&B run, and reads its rows."""

from __future__ import annotations

from pathlib import Path

from bridge.flops import ConfigError
from bridge.metrics.trackers.jsonl import FILE_NAME, summary_path
from bridge.report.host_log import tell_apart
from bridge.report.run_file import RecordedRun, parse, read_run


def open_run(path: str | Path, *, thinned: bool = False) -> RecordedRun:
    """Read a run of any size.

    A run's folder may hold several W&B folders, one per start. They become one run; a step that was trained again has its
    newest numbers.

    Args:
        path: the folder or file.
        thinned: as for :func:`bridge.report.run_file.read_run`.

    Raises:
        ConfigError: there is no run at this path, or it has no rows.
    """
    given = Path(path)
    files = _files(given)
    run = read_run(files[0], bounded=False, thinned=thinned)
    for file in files[1:]:
        _continue(run, read_run(file, bounded=False))
    tell_apart(run)
    summary = summary_path(files[0])
    if not run.facts and summary.is_file():
        facts = parse(summary.read_bytes())
        run.facts = facts if isinstance(facts, dict) else {}
    run.name = run.name or (files[0].resolve().parent.name if files[0].name == FILE_NAME else files[0].stem)
    return run


def _files(given: Path) -> list[Path]:
    """The files of a run, in the order of its starts."""
    if given.is_file():
        return [given]
    if not given.exists():
        raise ConfigError(f"run {given} does not exist; name a run's folder, its {FILE_NAME}, or an offline-run-* folder of W&B")
    if (given / FILE_NAME).is_file():
        return [given / FILE_NAME]
    if files := sorted(given.glob("run-*.wandb")):
        return files[:1]
    starts = sorted(given.glob("wandb/*run-*/run-*.wandb")) or sorted(given.glob("*run-*/run-*.wandb"))
    if newest := [file for file in starts if file.name == max(starts, key=lambda file: file.parent.name).name]:
        return newest
    raise ConfigError(f"folder {given} holds no run: neither {FILE_NAME} nor wandb/offline-run-*/run-*.wandb")


def _continue(run: RecordedRun, later: RecordedRun) -> None:
    newest = {row["step"]: row for row in (*run.rows, *later.rows)}
    run.take(newest.values())
    run.facts |= later.facts
    run.skipped += later.skipped
    run.torn = later.torn
