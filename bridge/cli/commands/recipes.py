"""``bridge recipes``: the recipes to train and the models to count."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.config import list_recipes

_HARDWARE = "Hardware: "

_EXAMPLES = {
    "all names": "bridge recipes",
    "with their paths and comments, for programs": "bridge recipes --json",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    options.add_command(
        commands,
        "recipes",
        run,
        "List the recipes: those that `bridge train` runs, and the models they build on.",
        _EXAMPLES,
    )


def run(arguments: argparse.Namespace) -> int:
    rows = [describe(path) for path in list_recipes()]
    if arguments.json:
        print_json(rows)
        return 0
    console = Output()
    for kind, title in (("training", "Training recipes"), ("model", "Models, to count or to build a recipe on")):
        table = make_table(("name",), texts=("hardware",), title=title)
        for row in rows:
            if row["kind"] == kind:
                table.add_row(row["name"], row["hardware"])
        console.show(table)
    return 0


def describe(path: Path) -> dict[str, str]:
    """What a recipe says about itself in the comment it begins with: the first line names the hardware."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    return {
        "name": path.stem,
        "kind": "model" if path.parent.name == "models" else "training",
        "path": str(path),
        "hardware": comment[0].removeprefix(_HARDWARE) if comment else "",
        "comment": " ".join(comment),
    }
