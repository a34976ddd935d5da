"""The charts of a report, drawn by plotly."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from bridge.explorer.figures import HEIGHT, Figure, labels, styled, words
from bridge.report.chart import Chart
from bridge.report.waterfall import Bar, meaning, measured


def figure(chart: Chart) -> Figure:
    """The same points, colours and units as in the report."""
    drawn = go.Figure()
    few = len(chart.steps) <= 60
    mode = {"lines": "lines+markers" if few else "lines", "points": "markers"}.get(chart.panel.kind, "lines")
    for label, values in chart.series.items():
        colour = chart.colours[label]
        stack = {"stackgroup": "all", "fillcolor": colour} if chart.panel.adds_up else {"connectgaps": True}
        drawn.add_scatter(
            x=list(chart.steps), y=list(values), name=words(label), mode=mode, line={"width": 2.2, "color": colour},
            marker={"size": 5, "color": colour}, hovertemplate="%{y:.4g} " + chart.scale.unit, **stack,
        )  # fmt: skip
    styled(drawn, chart.panel.title, x="step", y=chart.scale.unit)
    if chart.panel.least is not None:
        drawn.update_yaxes(rangemode="tozero" if chart.panel.least == 0 else "normal")
    if chart.plan is not None:
        drawn.add_hline(y=chart.plan, line={"dash": "dash", "width": 1.5}, annotation_text="planned, at most")
    drawn.update_layout(hovermode="x unified", showlegend=len(chart.series) > 1)
    return drawn


def falling(bars: Sequence[Bar], title: str) -> Figure:
    """Horizontal bars, each ending where the one above begins."""
    whole = bars[0].length or 1.0
    drawn = go.Figure()
    drawn.add_bar(
        y=[bar.name for bar in bars],
        x=[bar.length for bar in bars],
        base=[bar.start for bar in bars],
        orientation="h",
        marker={"color": [bar.colour for bar in bars]},
        customdata=[f"{bar.name}: {measured(bar, bars)}, {meaning(bar)}" for bar in bars],
        hovertemplate="%{customdata}<extra></extra>",
    )
    styled(drawn, title, x="seconds", height=max(HEIGHT, 140 + 40 * len(bars)))
    drawn.update_xaxes(range=[0, 1.05 * whole])
    drawn.update_yaxes(
        autorange="reversed", showgrid=False, **labels([bar.name for bar in bars], [measured(bar, bars) for bar in bars])
    )
    drawn.update_layout(bargap=0.25)
    return drawn
