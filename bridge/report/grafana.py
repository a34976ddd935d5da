"""The panels as a Grafana dashboard of the metrics that :mod:`bridge.metrics.trackers.prometheus` exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bridge.metrics.keys import Key
from bridge.metrics.trackers.prometheus import label_of, metric_of
from bridge.report.panels import SECTIONS, Panel

_UNITS = {"fraction": "percentunit", "s": "s", "s/step": "s", "ms/step": "ms", "W": "watt", "J": "joule", "TFLOP/s": "TFLOP/s"}
_WIDTH, _HEIGHT = 12, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_RUNS = "label_values(bridge_step, run)"


def build(name: str = "bridge") -> dict[str, Any]:
    """The dashboard, as Grafana imports it; it asks for the data source and for the run."""
    return {
        "title": name,
        "schemaVersion": 39,
        "tags": ["bridge"],
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_variable("datasource", "datasource", "prometheus"), _variable("run", "query", _RUNS)]},
        "panels": list(_panels()),
    }


def _variable(name: str, kind: str, query: str) -> dict[str, Any]:
    source = {} if kind == "datasource" else {"datasource": _SOURCE, "refresh": 2, "multi": True, "includeAll": True}
    return {"name": name, "type": kind, "query": query, **source}


def _panels() -> Iterator[dict[str, Any]]:
    y = 0
    for section in SECTIONS:
        yield {"type": "row", "title": section.title, "gridPos": {"x": 0, "y": y, "w": 2 * _WIDTH, "h": 1}, "panels": []}
        y += 1
        for i, panel in enumerate(section.panels):
            yield _panel(panel, _WIDTH * (i % 2), y + _HEIGHT * (i // 2))
        y += _HEIGHT * -(-len(section.panels) // 2)


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    stacking = {"stacked": "normal", "shares": "percent"}.get(panel.kind, "none")
    look = {"stacking": {"mode": stacking}, "fillOpacity": 70 if panel.adds_up else 0}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": _UNITS.get(panel.unit, "short"), "custom": look}, "overrides": []},
        "targets": [_target(key, chr(ord("A") + i)) for i, key in enumerate(panel.keys)],
    }


def _target(key: Key, letter: str) -> dict[str, Any]:
    label = label_of(key)
    legend = f"{{{{{label}}}}}" if label else key.name.removeprefix("throughput/")
    return {"expr": f'{metric_of(key.name)}{{run=~"$run"}}', "legendFormat": legend, "refId": letter}
