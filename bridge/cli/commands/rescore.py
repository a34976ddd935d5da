"""``bridge rescore``: a finished run priced again in another convention."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table
from bridge.cli.runs import add_run
from bridge.flops import ConfigError
from bridge.flops.conventions import CONVENTIONS
from bridge.text import digits_of

_EXAMPLES = {
    "the run in another convention, beside its own": "bridge rescore runs/tiny --convention exact",
    "with the rows that it would have written": "bridge rescore runs/tiny --convention palm -o palm.jsonl",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "rescore",
        run,
        "Price a finished run again, from the statistics of its batches and the prices of each convention that the "
        "run has recorded. The integers equal those that a run in that convention would have written.",
        _EXAMPLES,
        json=False,
    )
    add_run(parser)
    parser.add_argument("--convention", choices=list(CONVENTIONS), required=True, help="how to count")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the rows to this file, as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    from bridge.report.rescore import rescore
    from bridge.report.runs import open_run

    found = open_run(arguments.source)
    rows = list(rescore(found, arguments.convention))
    _say(found, rows, arguments.convention)
    if arguments.output is not None:
        try:
            arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output {arguments.output} cannot be written: {error.strerror}") from None
    return 0


def _say(found: Any, rows: list[dict[str, Any]], convention: str) -> None:
    """Both conventions side by side."""
    table, before = make_table(("",), (found.facts["convention"], convention)), found.rows

    def add(name: str, *values: Any) -> None:
        texts = ("unknown" if value is None else digits_of(value, 6) for value in values)
        table.add_row(name.removeprefix("throughput/"), *texts)

    for key in sorted({key for row in rows for key in row if key.startswith("throughput/flops/")}):
        add(key, sum(row.get(key, 0) for row in before), sum(row.get(key, 0) for row in rows))
    for key in ("throughput/total_flops",):
        add(key, *(next((row[key] for row in reversed(each) if key in row), None) for each in (before, rows)))
    for key in ("throughput/tflops/device", "throughput/mfu", "throughput/hfu"):
        numbers = [[row[key] for row in each if key in row] for each in (before, rows)]
        if any(numbers):
            add(f"{key}, median", *(median(some) if some else None for some in numbers))
    Output().show(table)
