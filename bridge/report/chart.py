"""A panel filled with the numbers of a run, in readable units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.metrics.keys import FRACTION
from bridge.report.colours import colours
from bridge.report.panels import Panel
from bridge.report.run_file import RecordedRun
from bridge.report.scale import UnitScale, scale_of
from bridge.report.thin import is_whole, kept

#: The line of a plan is drawn up to this many times the largest value; a higher one would flatten the curve.
_PLAN_IN_SIGHT = 20

Values = Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """One chart, ready to be drawn.

    Attributes:
        panel: the panel that it shows.
        steps: the step of each point.
        series: label -> values at the steps.
        colours: label -> color.
        scale: the unit of the values.
        plan: the planned final value in that unit; None if it is unknown or far above the values.
    """

    panel: Panel
    steps: list[float]
    series: dict[str, Values]
    colours: dict[str, str]
    scale: UnitScale
    plan: float | None = None

    @property
    def edges(self) -> list[tuple[Values, Values]]:
        """Lower and upper edge of each series; they differ only where series are stacked."""
        if not self.panel.adds_up:
            return [(values, values) for values in self.series.values()]
        edges: list[tuple[Values, Values]] = []
        below = [0.0] * len(self.steps)
        for values in self.series.values():
            above = [low + (value or 0.0) for low, value in zip(below, values, strict=True)]
            edges.append((below, above))
            below = above
        return edges


def fill(panel: Panel, run: RecordedRun) -> Chart | None:
    """The chart of a run; None where it has none of the panel's keys."""
    labels = panel.matching(run.names())
    steps: Sequence[Any] = run.series("step")
    columns: list[Any] = [run.series(name) for name in labels]
    if panel.adds_up and not all(map(is_whole, columns)):  # a row has all parts or is dropped
        whole = [i for i, row in enumerate(zip(*columns, strict=True)) if None not in row]
        steps, columns = _rows(steps, whole), [_rows(column, whole) for column in columns]
    if not labels or not steps:
        return None
    chosen = kept(columns)
    steps, columns = _rows(steps, chosen), [_rows(column, chosen) for column in columns]
    names = list(labels.values())
    if panel.kind == "shares":
        columns = _shares(columns)
    if panel.kind == "lines":
        names, columns = _coinciding(names, columns)
    largest = max(abs(value) for column in columns for value in column if value is not None)
    plan = _plan(panel, run, largest)
    scale = scale_of(FRACTION if panel.kind == "shares" else panel.unit, max(largest, plan or 0.0))
    return Chart(
        panel,
        [float(step) for step in steps],
        {name: scaled(column, scale.factor) for name, column in zip(names, columns, strict=True)},
        colours(names),
        scale,
        None if plan is None else plan * scale.factor,
    )


def _rows(column: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [column[i] for i in rows]


def _shares(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    sums = [sum(row) or 1.0 for row in zip(*columns, strict=True)]
    return [[value / whole for value, whole in zip(column, sums, strict=True)] for column in columns]


def _coinciding(names: Sequence[str], columns: Sequence[Values]) -> tuple[list[str], list[Values]]:
    """Merges equal lines, which would hide each other: MFU and HFU are equal if nothing is recomputed."""
    groups: dict[tuple[float | None, ...], list[str]] = {}
    for name, column in zip(names, columns, strict=True):
        groups.setdefault(tuple(column), []).append(name)
    return [" = ".join(group) for group in groups.values()], [list(column) for column in groups]


def scaled(column: Values, factor: float) -> list[float | None]:
    """A column times a factor."""
    return [None if value is None else float(value) * factor for value in column]


def _plan(panel: Panel, run: RecordedRun, largest: float) -> float | None:
    planned = run.facts.get(panel.plan) if panel.plan else None
    if not isinstance(planned, (int, float)) or not 0 < planned < _PLAN_IN_SIGHT * largest:
        return None
    return float(planned)
