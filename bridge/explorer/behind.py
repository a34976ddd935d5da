"""Tables of the numbers in figures, for people who cannot see them; they are read from the figures, so none is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.explorer.figures import Figure
from bridge.report.thin import kept
from bridge.report.view import Column, Table
from bridge.text import significant

#: Most rows of a table; of more points it has those that a chart of this width would keep.
MOST_ROWS = 60


def table_of(figure: Figure) -> Table:
    """A row for each position along the figure, a column for each of its series."""
    traces = [trace for trace in figure.data if getattr(trace, "mode", None) != "text"]
    horizontal = any(getattr(trace, "orientation", None) == "h" for trace in traces)
    points = [dict(zip(*((trace.y, trace.x) if horizontal else (trace.x, trace.y)), strict=True)) for trace in traces]
    places = list(dict.fromkeys(place for one in points for place in one))
    if all(isinstance(place, (int, float)) for place in places):
        places.sort()
    series = [[one.get(place) for place in places] for one in points]
    rows = [(places[i], *(values[i] for values in series)) for i in kept(series, MOST_ROWS)]
    axes = (figure.layout.yaxis, figure.layout.xaxis) if horizontal else (figure.layout.xaxis, figure.layout.yaxis)
    along, across = (axis.title.text or "" for axis in axes)
    heads = [trace.name or across for trace in traces]
    unit = f" ({across})" if len(traces) > 1 and across else ""
    columns = (Column("place", along, _shown), *(Column(head, head, _shown) for head in heads))
    return Table(columns, rows, f"{figure.layout.title.text}{unit}")


def _shown(value: Any) -> str:
    return significant(value, 5) if isinstance(value, (int, float)) else str(value)


def tables(figures: Sequence[Figure | None]) -> list[Table]:
    """The tables of all figures that are drawn."""
    return [table_of(figure) for figure in figures if figure is not None]
