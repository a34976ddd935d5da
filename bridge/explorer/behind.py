"""The numbers behind a figure as a table, for who cannot see it: read off the figure itself, so that none lacks one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.explorer.figures import Figure
from bridge.report.thin import kept
from bridge.report.view import Column, Table
from bridge.text import significant

#: Rows of a table; of more points those that a chart of this width would keep.
MOST_ROWS = 60


def table_of(figure: Figure) -> Table:
    """A row for each place along the figure, a column for each of its series."""
    traces = [trace for trace in figure.data if getattr(trace, "mode", None) != "text"]
    lies = any(getattr(trace, "orientation", None) == "h" for trace in traces)
    points = [dict(zip(*((trace.y, trace.x) if lies else (trace.x, trace.y)), strict=True)) for trace in traces]
    places = list(dict.fromkeys(place for one in points for place in one))
    if all(isinstance(place, (int, float)) for place in places):
        places.sort()
    columns = [[one.get(place) for place in places] for one in points]
    rows = [(places[i], *(column[i] for column in columns)) for i in kept(columns, MOST_ROWS)]
    along, across = (axis.title.text or "" for axis in (figure.layout.xaxis, figure.layout.yaxis))
    heads = [trace.name or (along if lies else across) for trace in traces]
    unit = f" ({along if lies else across})" if len(traces) > 1 and (along if lies else across) else ""
    return Table(
        (Column("place", across if lies else along, _shown), *(Column(head, head, _shown) for head in heads)),
        rows,
        f"{figure.layout.title.text}{unit}",
    )


def _shown(value: Any) -> str:
    return significant(value, 5) if isinstance(value, (int, float)) else str(value)


def tables(figures: Sequence[Figure | None]) -> list[Table]:
    """Of all that are drawn."""
    return [table_of(figure) for figure in figures if figure is not None]
