"""``bridge dashboard``: the panels as a saved workspace of a W&B project."""

from __future__ import annotations

import argparse
import re
from typing import Any

from bridge.cli.arguments import add_command
from bridge.cli.console import Output, make_table, print_json
from bridge.flops import ConfigError
from bridge.metrics.trackers import is_installed

_EXAMPLES = {
    "what would be saved": "bridge dashboard my-team/pretraining --dry-run",
    "save it": "bridge dashboard my-team/pretraining --name throughput",
    "the same panels for Grafana": "bridge dashboard --grafana",
}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "dashboard",
        run,
        "Save a workspace in a W&B project: throughput and utilization, where the work goes, padding and data wait, balance, "
        "totals. With --dry-run or --json the workspace is built and shown, and nothing is sent; saving needs a W&B account.",
        _EXAMPLES,
    )
    parser.add_argument("project", nargs="?", default="", metavar="ENTITY/PROJECT", help="the project, as in its address")
    parser.add_argument("--grafana", action="store_true", help="print a Grafana dashboard over Prometheus instead, as JSON")
    parser.add_argument("--name", help="name of the workspace")
    parser.add_argument("--dry-run", action="store_true", help="show what would be saved")


def run(arguments: argparse.Namespace) -> int:
    if arguments.grafana:
        from bridge.report import grafana

        print_json(grafana.build(arguments.name or "bridge"))
        return 0
    match = re.fullmatch(r"([\w.-]+)/([^/\\#?%:]{1,128})", arguments.project)
    if match is None:
        raise ConfigError(f"{arguments.project!r} must have the form ENTITY/PROJECT, for example my-team/pretraining")
    if not is_installed("wandb_workspaces"):
        raise ConfigError("`bridge dashboard` needs wandb-workspaces; pip install wandb-workspaces")
    from bridge.report import workspace

    built = workspace.build(match[1], match[2], arguments.name or workspace.NAME)
    if arguments.json:
        print_json(workspace.spec(built), versioned=False)  # what would be sent, and nothing else
    elif arguments.dry_run:
        _show(built.name)
    else:
        _save(built)
    return 0


def _show(name: str) -> None:
    from bridge.report.panels import SECTIONS

    table = make_table(["section", "panel", "as", "unit"], texts=["keys"], title=f"{name} (not saved)")
    for section in SECTIONS:
        for i, panel in enumerate(section.panels):
            table.add_row("" if i else section.title, panel.title, panel.kind, panel.unit, ", ".join(panel.names))
    Output().show(table)


def _save(built: Any) -> None:
    from bridge.metrics.trackers.wandb import has_account

    if not has_account():
        raise ConfigError("saving a workspace needs a W&B account: `wandb login` or WANDB_API_KEY; --dry-run needs none")
    try:
        built.save()
    except Exception as error:  # of the network, of the server, of the client
        raise OSError(f"the workspace could not be saved in {built.entity}/{built.project}: {error}") from None
    print(f"saved: {built.url}")
