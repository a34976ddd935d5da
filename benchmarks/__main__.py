"""Runs benchmarks, prints one table and writes one JSON file.

    python -m benchmarks [NAME ...] [--json build/bench.json]

Each benchmark runs in a fresh process.  The exit code is 0 whether or not targets are met, as times of a busy machine are no
verdict; but 1 where a figure that no load disturbs is above its guard.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, collect

#: On any machine, in this order.
NAMES = ("counting", "adding", "stepping", "instructions", "paired_steps", "ranks", "packed_statistics")
GPU = ("gpu",)
WIDTH = 170
"""Columns of the table in a file or a pipe."""


def shown(value: float) -> str:
    """Four significant digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the package costs.")
    parser.add_argument("names", nargs="*", choices=[*NAMES, *GPU, []], metavar="NAME", help=", ".join((*NAMES, *GPU)))
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    facts = machine()
    found: dict[str, list[Row]] = {}
    table = Table("benchmark", "", "value", "unit", "target", "", "note", title=f"{facts['date']}, load {facts['load']}")
    for name in arguments.names or NAMES:
        with (
            console.status(name),
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
        ):
            result = process.submit(collect, name).result()
        if isinstance(result, str):
            console.print(f"{name}: skipped: {result}")
            continue
        found[name] = result
        for row in result:
            target = "" if row.target is None else f"< {shown(row.target)}"
            verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row.met]
            table.add_row(name, row.name, shown(row.value), row.unit, target, verdict, row.note)
        table.add_section()
    if found:
        console.print(table)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"benchmark": name, **asdict(row), "met": row.met} for name, result in found.items() for row in result]
        arguments.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
        console.print(f"written to {arguments.json}")
    guarded = [row for result in found.values() for row in result if row.guard is not None and row.value > row.guard]
    if guarded:
        sys.exit("\n".join(f"{row.name}: {shown(row.value)} {row.unit}, more than {shown(row.guard or 0)}" for row in guarded))


if __name__ == "__main__":
    main()
