"""The W&B workspace, built without network: its spec holds the declared panels, and finds what a run logged."""

import re

import pytest

pytest.importorskip("wandb_workspaces", reason="pip install 'bridge-flops[dashboard]'")

from bridge.metrics.keys import find_key
from bridge.report import workspace
from bridge.report.panels import SECTIONS
from tests.report.test_run_file import row


@pytest.fixture(scope="module")
def spec():
    return workspace.spec(workspace.build("team", "project"))


def sections(spec):
    return spec["spec"]["section"]["panelBankConfig"]["sections"]


def plots(spec):
    return [panel["config"] for section in sections(spec) for panel in section["panels"] if "Line" in panel["viewType"]]


def test_it_is_the_declaration(spec):
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "project", workspace.NAME)
    assert [section["name"] for section in sections(spec)] == [section.title for section in SECTIONS]
    declared = [panel for section in SECTIONS for panel in section.panels]
    assert [plot["chartTitle"] for plot in plots(spec)] == [panel.title for panel in declared]
    for plot, panel in zip(plots(spec), declared, strict=True):
        assert plot["xAxis"] == "step"
        assert plot.get("yAxisTitle", panel.unit) == panel.unit
        assert (
            plot["plotType"] == {"lines": "line", "points": "line", "stacked": "stacked-area", "shares": "pct-area"}[panel.kind]
        )


def test_every_metric_is_declared(spec):
    metrics = [metric for plot in plots(spec) for metric in plot.get("metrics", ())]
    assert [metric for metric in metrics if find_key(metric) is None] == []
    assert all(plot.get("metrics") or plot.get("metricRegex") for plot in plots(spec))


def test_patterns_find_the_components_of_a_run_and_nothing_else(spec):
    logged = list(row(10))
    patterns = [plot["metricRegex"] for plot in plots(spec) if plot.get("useMetricRegex")]
    assert patterns
    for pattern in patterns:
        assert [key for key in logged if re.search(pattern, key)] == ["throughput/flops/mlp", "throughput/flops/core_attention"]


def test_it_is_the_same_each_time(spec):
    assert workspace.spec(workspace.build("team", "project")) == spec
