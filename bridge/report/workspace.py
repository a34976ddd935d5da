"""The panels as a saved workspace of a W&B project.

It is built and checked without a network; only saving it needs an account.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from bridge.metrics.keys import FRACTION, STEP
from bridge.report.panels import SECTIONS, Panel, Section

NAME = "Throughput and FLOPs"
"""The default name of the workspace."""

_PLOT_TYPES: dict[str, Literal["line", "stacked-area", "pct-area"]] = {
    "lines": "line",
    "points": "line",
    "heat": "line",
    "stacked": "stacked-area",
    "shares": "pct-area",
}


def build(entity: str, project: str, name: str = NAME) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace`` that is not saved yet; its ``save()`` goes to the server."""
    import wandb_workspaces.workspaces as workspaces

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_section(section) for section in SECTIONS],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, remove_legends_from_panels=False),
    )


def spec(workspace: Any) -> dict[str, Any]:
    """What would be sent to the server, as JSON, without the random ids of the panels."""
    return _without_ids(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)))


def _section(section: Section) -> Any:
    import wandb_workspaces.workspaces as workspaces
    from wandb_workspaces.reports import v2 as reports

    layout = workspaces.SectionLayoutSettings(columns=2, rows=-(-len(section.panels) // 2))
    panels = [_line_plot(panel) for panel in section.panels]
    panels += [reports.ScalarChart(title="Planned FLOPs, at most", metric=panel.plan) for panel in section.panels if panel.plan]
    return workspaces.Section(name=section.title, panels=panels, is_open=True, layout_settings=layout)


def _line_plot(panel: Panel) -> Any:
    from wandb_workspaces.reports import v2 as reports

    families = [key.prefix for key in panel.keys if key.prefix is not None]
    return reports.LinePlot(
        title=panel.title,
        x=STEP,
        y=[key.name for key in panel.keys if key.prefix is None],
        metric_regex="|".join(f"^{re.escape(prefix)}.+" for prefix in families) or None,
        title_x=STEP,
        title_y=None if panel.kind == "shares" else panel.unit,
        plot_type=_PLOT_TYPES[panel.kind],
        range_y=(0.0, None) if panel.unit == FRACTION else (None, None),
    )


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "__id__"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value
