"""``bridge report``: a run as one file of HTML."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli import arguments as options
from bridge.cli.runs import add_run
from bridge.flops import ConfigError
from bridge.metrics.why import why

_NO_PARTS = "The run has no throughput/time/ keys: its callback had detail=0, or its loop could not be measured."

_EXAMPLES = {
    "one run": "bridge report runs/tiny",
    "two runs, overlaid": "bridge report runs/first runs/second -o both.html",
    "in one sentence, where the time goes": "bridge report runs/tiny --why",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "report",
        run,
        "Write a run's measurements as one HTML file that needs no network: throughput and utilization, where the "
        "work goes, padding and data wait, balance, totals. Several runs are overlaid.",
        _EXAMPLES,
        json=False,
    )
    add_run(parser, several=True)
    parser.add_argument("--beside", type=Path, metavar="LOG", help="also show the rates that Megatron reported for the (first) "
                                                                   "run: LOG is the job's standard output, its offline W&B run "
                                                                   "or its TensorBoard files")  # fmt: skip
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: report.html in the run's folder, reports.html in the first of several)",
    )
    parser.add_argument("--why", action="store_true", help="print in a sentence where the time of a step goes, and write nothing")


def run(arguments: argparse.Namespace) -> int:
    from bridge.report.page import render
    from bridge.report.runs import open_run
    from bridge.report.waterfall import parts_of

    found = [open_run(source, thinned=arguments.beside is None) for source in arguments.sources]
    if arguments.why:
        for run in found:
            told = why(parts_of(run)) or _NO_PARTS
            print(told if len(found) == 1 else f"{run.name}: {told}")
        return 0
    if arguments.beside is not None:
        from bridge.report.host_log import put_beside

        put_beside(found[0], arguments.beside)
    page = render(*found, sources=arguments.sources)
    source = Path(arguments.sources[0])
    name = "report.html" if len(found) == 1 else "reports.html"
    output = arguments.output or (source if source.is_dir() else source.parent) / name
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from None
    print(f"{output}  ({len(page.encode()) / 1024:,.0f} KiB)")
    return 0
