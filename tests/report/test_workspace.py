"""The W&B workspace, built without network: its spec holds the declared panels, and finds what a run logged."""

import json
import re

import pytest

pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")

from bridge.cli.main import main
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
        assert plot["plotType"] == {"stacked": "stacked-area", "shares": "pct-area"}.get(panel.kind, "line")


def test_every_metric_is_declared(spec):
    metrics = [metric for plot in plots(spec) for metric in plot.get("metrics", ())]
    assert [metric for metric in metrics if find_key(metric) is None] == []
    assert all(plot.get("metrics") or plot.get("metricRegex") for plot in plots(spec))


def test_patterns_find_the_components_of_a_run_and_nothing_else(spec):
    families = {
        "throughput/flops/": ["throughput/flops/mlp", "throughput/flops/core_attention"],
        "throughput/time/": ["throughput/time/ideal"],
    }
    logged = [*row(10), "throughput/time/ideal", "throughput/time_fraction/ideal"]
    patterns = [plot["metricRegex"] for plot in plots(spec) if plot.get("useMetricRegex")]
    found = list(filter(None, ([key for key in logged if re.search(pattern, key)] for pattern in patterns)))
    assert sorted(found) == sorted(list(families.values()) * 2)


def test_it_is_the_same_each_time(spec):
    assert workspace.spec(workspace.build("team", "project")) == spec


def test_a_grafana_dashboard_has_every_panel_and_asks_for_the_names_that_prometheus_has(capsys):
    assert main(["dashboard", "--grafana", "--name", "training"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["title"] == "training"
    panels = [panel for panel in told["panels"] if panel["type"] == "timeseries"]
    assert [panel["title"] for panel in panels] == [panel.title for section in SECTIONS for panel in section.panels]
    expressions = {target["expr"]: target["legendFormat"] for panel in panels for target in panel["targets"]}
    assert expressions['bridge_throughput_flops{run=~"$run"}'] == "{{component}}"
    assert expressions['bridge_throughput_time{run=~"$run"}'] == "{{part}}"
    assert expressions['bridge_throughput_mfu{run=~"$run"}'] == "mfu"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
