"""Several runs in one chart: the lines of their own reports, labeled with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bridge.flops import ConfigError
from bridge.report.chart import Chart, Values, fill, scaled
from bridge.report.colours import colours
from bridge.report.panels import Panel
from bridge.report.run_file import RecordedRun

#: Kinds of panels that can be overlaid; the others are drawn once per run.
_LINES = ("lines", "points")
#: More could not be distinguished by color.
MOST_RUNS = 5


def named(runs: Sequence[RecordedRun], sources: Sequence[str]) -> dict[str, RecordedRun]:
    """The runs by a unique label: their names, or their paths if names repeat.

    Raises:
        ConfigError: there are too many, or one is given twice.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"{len(runs)} runs in one report; the maximum is {MOST_RUNS}")
    names = [run.name for run in runs]
    found = dict(zip(sources if len(set(names)) < len(names) else names, runs, strict=True))
    if len(found) < len(runs):
        raise ConfigError("the same run is given twice; name different runs")
    return found


def charts(panel: Panel, runs: Mapping[str, RecordedRun]) -> list[Chart]:
    """The charts of a panel: one for all runs, or one per run; none if no run has any of its keys."""
    filled = {name: chart for name, run in runs.items() if (chart := fill(panel, run))}
    if len(runs) == 1 or not filled:
        return list(filled.values())
    if panel.kind not in _LINES:
        return [replace(chart, panel=replace(panel, title=f"{panel.title}: {name}")) for name, chart in filled.items()]
    return [_together(panel, filled)]


def _together(panel: Panel, filled: Mapping[str, Chart]) -> Chart:
    """One chart at the steps of all runs, in the unit that suits the largest values."""
    scale = min((chart.scale for chart in filled.values()), key=lambda scale: scale.factor)
    steps = sorted({step for chart in filled.values() for step in chart.steps})
    series: dict[str, Values] = {}
    for name, chart in filled.items():
        for label, values in chart.series.items():
            at = dict(zip(chart.steps, values, strict=True))
            factor = scale.factor / chart.scale.factor
            called = name if len(chart.series) == 1 else f"{name}: {label}"
            series[called] = scaled([at.get(step) for step in steps], factor)
    return Chart(panel, steps, series, colours(list(series)), scale)
