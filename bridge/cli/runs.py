"""What commands on finished runs share."""

from __future__ import annotations

import argparse

from bridge.metrics.trackers.jsonl import FILE_NAME


def add_run(parser: argparse.ArgumentParser) -> None:
    """The positional argument: a finished run."""
    parser.add_argument("source", metavar="RUN",
                        help=f"a run's folder, its {FILE_NAME}, or the folder or .wandb file of an offline W&B run")  # fmt: skip
