"""What commands on finished runs share."""

from __future__ import annotations

import argparse

from bridge.metrics.trackers.jsonl import FILE_NAME


def add_run(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The positional argument: a finished run, or several."""
    parser.add_argument("sources" if several else "source", nargs="+" if several else None, metavar="RUN",
                        help=f"a run's folder, its {FILE_NAME}, or the folder or .wandb file of an offline W&B run")  # fmt: skip
