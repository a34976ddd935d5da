"""A chart as SVG: readable without scripts, in any size.  Colors of text and grid are the page's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bridge.report.chart import Chart, Values
from bridge.report.colours import PALETTE
from bridge.report.scale import tick_text, ticks

WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 24
#: Charts with at most this many points mark each of them.
_FEW = 60
#: The number of row names that fit beside a heat map, and its color.
_MOST_ROWS, _HEAT = 14, PALETTE["vermilion"]
#: Width in pixels of the bar that shows a single step.
_BAR = 40


@dataclass(frozen=True)
class _Axes:
    """From steps and values to pixels."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        along = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + along * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        up = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def svg(chart: Chart) -> str:
    """The drawing; it takes the keyboard focus, so that the page's script can read out its numbers step by step."""
    told = f"{chart.panel.title}, steps {tick_text(chart.steps[0])} to {tick_text(chart.steps[-1])}; arrow keys read its numbers"
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(told)}">']
    parts += _heat(chart) if chart.panel.kind == "heat" else _curves(chart)
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0" visibility="hidden"/></svg>')
    return "".join(parts)


def _curves(chart: Chart) -> list[str]:
    axes, marks = _axes(chart)
    parts = []
    percent = "%" if chart.scale.unit == "%" else ""
    for value in marks:
        parts.append(_across("grid", axes.y(value)))
        parts.append(_text(LEFT - 8, axes.y(value) + 4, tick_text(value) + percent, "end"))
    parts += _steps(axes)
    draw = _DRAW[chart.panel.kind]
    # The first series is on top of those it coincides with.
    for label, (low, high) in reversed(list(zip(chart.series, chart.edges, strict=True))):
        parts.append(draw(axes, chart.colours[label], chart.steps, low, high))
    if chart.plan is not None:
        parts.append(_across("plan", axes.y(chart.plan)))
        parts.append(_text(LEFT + 6, axes.y(chart.plan) + 14, "planned, at most", "start"))
    return parts


def _steps(axes: _Axes) -> list[str]:
    """The numbers of steps below a chart."""
    below = HEIGHT - BOTTOM + 17
    numbers = [_text(axes.x(step), below, tick_text(step), "middle") for step in ticks(axes.first, axes.last, whole=True)]
    return [_text(LEFT - 8, below, "step", "end", "tick axis"), *numbers]


def _heat(chart: Chart) -> list[str]:
    """A row of cells for each series, the first on top; a cell reaches half-way to its neighbors."""
    axes, _ = _axes(chart)
    known = [value for values in chart.series.values() for value in values if value is not None]
    low = min(known) if chart.panel.least is None else min(chart.panel.least, *known)
    spread, height = max(known) - low or 1.0, (HEIGHT - TOP - BOTTOM) / len(chart.series)
    places = [axes.x(step) for step in chart.steps]
    between = [(left + right) / 2 for left, right in zip(places, places[1:], strict=False)]
    edges = [LEFT, *between, WIDTH - RIGHT]
    parts, every = _steps(axes), -(-len(chart.series) // _MOST_ROWS)
    for row, (label, values) in enumerate(chart.series.items()):
        top = TOP + row * height
        if row % every == 0:
            parts.append(_text(LEFT - 8, top + height / 2 + 4, escape(label), "end"))
        for left, right, value in zip(edges, edges[1:], values, strict=False):
            if value is not None:
                size = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{height:.1f}"'
                parts.append(f'<rect {size} fill="{_HEAT}" fill-opacity="{(value - low) / spread:.3f}"/>')
    return parts


def numbers(chart: Chart) -> dict[str, Any]:
    """Steps, unit and series of a chart, for the page's script."""
    series = [
        {
            "label": label.replace("_", " "),
            "colour": chart.colours[label],
            "values": [None if value is None else float(f"{value:.5g}") for value in values],
        }
        for label, values in chart.series.items()
    ]
    return {"steps": chart.steps, "unit": chart.scale.unit, "series": series}


def _axes(chart: Chart) -> tuple[_Axes, list[float]]:
    """The axes, and the ticks of the values; both end at a tick."""
    values = [value for edge in chart.edges for side in edge for value in side if value is not None]
    values += [chart.plan] if chart.plan is not None else []
    values += [100.0] if chart.panel.kind == "shares" else []
    low, high = min(values), max(values)
    if chart.panel.least is not None:
        low = min(low, chart.panel.least)
    if high <= low:
        high = low + (abs(low) or 1.0)
    marks = ticks(low, high, outside=True, whole=chart.panel.unit == "index")
    return _Axes(chart.steps[0], chart.steps[-1], marks[0], marks[-1]), marks


def _across(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _points(axes: _Axes, steps: Sequence[float], values: Values) -> list[str]:
    pairs = zip(steps, values, strict=True)
    return [f"{axes.x(step):.1f} {axes.y(value):.1f}" for step, value in pairs if value is not None]


def _line(axes: _Axes, colour: str, steps: Sequence[float], _: Values, values: Values) -> str:
    path = f'<path class="line" style="stroke:{colour}" d="M{"L".join(_points(axes, steps, values))}"/>'
    return path if len(steps) > _FEW else path + _dots(axes, colour, steps, values, values)


def _dots(axes: _Axes, colour: str, steps: Sequence[float], _: Values, values: Values) -> str:
    places = (point.split() for point in _points(axes, steps, values))
    return "".join(f'<circle r="2.2" style="fill:{colour}" cx="{x}" cy="{y}"/>' for x, y in places)


def _area(axes: _Axes, colour: str, steps: Sequence[float], low: Values, high: Values) -> str:
    edge = _points(axes, steps, high) + _points(axes, steps[::-1], low[::-1])
    if len(steps) == 1:  # an area needs two
        middle = axes.x(steps[0])
        (_, top), (_, bottom) = (point.split() for point in edge)
        left, right = middle - _BAR / 2, middle + _BAR / 2
        edge = [f"{left} {top}", f"{right} {top}", f"{right} {bottom}", f"{left} {bottom}"]
    return f'<path class="area" style="fill:{colour}" d="M{"L".join(edge)}Z"/>'


_DRAW = {"lines": _line, "points": _dots, "stacked": _area, "shares": _area}
