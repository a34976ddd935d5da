"""``bridge goodput``: where the time of a job went, restarts included."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.flops import ConfigError
from bridge.metrics.goodput import BEATS, FILE, PARTS, job_of, last_beat, read_beats, read_events

_EXAMPLES = {
    "the job that saves its checkpoints there": "bridge goodput checkpoints/tiny",
    "its ledger alone, for programs": "bridge goodput checkpoints/tiny/job.jsonl --json",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "goodput",
        run,
        f"Show where the wall time of a job went, from its ledger ({FILE}, beside the checkpoints): start-up, steps that were "
        "kept, data, evaluations, checkpoints, lost steps, and the time between processes.",
        _EXAMPLES,
    )
    parser.add_argument("ledger", type=Path, help=f"a {FILE}, or the folder that it is in")


def run(arguments: argparse.Namespace) -> int:
    given = arguments.ledger
    path = given / FILE if given.is_dir() else given
    events = read_events(path)
    job = job_of([*events, *last_beat(events, read_beats(path.with_name(BEATS)))])
    if not job.wall:
        raise ConfigError(f"{given} is no ledger of a job; name a {FILE} or the folder that it is in (docs/goodput.md)")
    numbers = job.metrics()
    if arguments.json:
        print_json(numbers)
        return 0
    console, table = Output(), make_table(("part",), ("seconds", "share"), ("what it is",))
    for part, seconds in job.seconds.items():
        if seconds:
            table.add_row(part, f"{seconds:,.1f}", f"{seconds / job.wall:.1%}", PARTS[part])
    table.add_row("total", f"{job.wall:,.1f}", "", style="bold")
    console.show(table)
    for name, value in numbers.items():
        if not name.startswith("goodput/seconds/"):
            shown = ", ".join(value) if isinstance(value, list) else f"{value:.4g}"
            console.print(f"{name}  {shown}")
    return 0
