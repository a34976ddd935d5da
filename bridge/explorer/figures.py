"""The style of all figures, and their few kinds.  Fonts and colors are local; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.graph_objects import Figure

from bridge.report.colours import colours
from bridge.text import with_unit

INK, GRID, PAPER = "#1f2937", "rgba(128, 138, 155, 0.25)", "#ffffff"
#: Height in pixels; the width follows the page.
HEIGHT = 420
#: What fits on a phone: letters in a line of a title, letters in a line of a bar's name, pixels of a legend.
_TITLE, _NAME, _LEGEND = 36, 14, 220
#: Pixels of a line, of a letter, and of the swatch before a name in a legend.
_LINE, _LETTER, _SWATCH = 19, 6.6, 42
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def styled(figure: Figure, title: str, *, x: str = "", y: str = "", height: int = HEIGHT) -> Figure:
    """Apply the title, axes, margins and legend that all figures share; the mode bar is above the title."""
    figure.update_layout(
        title={
            "text": title,
            "x": 0.02,
            "xanchor": "left",
            "y": 1 - 34 / height,
            "yanchor": "top",
            "font": {"size": 15},
        },
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor=PAPER,
        plot_bgcolor="rgba(0, 0, 0, 0)",
        height=height,
        margin={"l": 64, "r": 16, "t": 72, "b": 48},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.2 if x else -0.16,
            "yanchor": "top",
            "traceorder": "normal",
            "bgcolor": "rgba(0, 0, 0, 0)",
        },
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": "#6b7280", "activecolor": "#0072b2"},
        hoverlabel={"font": {"family": FONT}},
        template="none",
    )
    figure.update_xaxes(title={"text": x, "standoff": 8}, gridcolor=GRID, zeroline=False, automargin=True, linecolor=GRID)
    figure.update_yaxes(title={"text": y, "standoff": 8}, gridcolor=GRID, zeroline=False, automargin=True)
    return figure


def stacked(
    groups: Sequence[str],
    parts: Mapping[str, Sequence[Any]],
    title: str,
    *,
    y: str,
    unit: str = "FLOP",
    totals: bool = True,
    horizontal: bool = False,
) -> Figure:
    """A bar for each group, made of stacked parts, with the total at its end.

    Args:
        groups: names of the bars.
        parts: name -> a number for each bar; None or 0 draws nothing.
        title: the title of the figure.
        y: the title of the value axis.
        unit: the unit of the numbers, for the totals.
        totals: whether to write the totals above vertical bars.
        horizontal: whether the bars are horizontal, for many groups or long names.
    """
    tint = colours(list(parts))
    along, across = ("x", "y") if horizontal else ("y", "x")
    figure = go.Figure()
    for name, numbers in parts.items():
        values = [float(number or 0) for number in numbers]
        figure.add_bar(
            **{across: list(groups), along: values},
            orientation="h" if horizontal else "v",
            name=words(name),
            marker={"color": tint[name]},
            customdata=[with_unit(value, unit) for value in values],
            hovertemplate=f"%{{{across}}}<br>{words(name)}: %{{customdata}}<extra></extra>",
        )
    sums = [sum(float(numbers[i] or 0) for numbers in parts.values()) for i in range(len(groups))]
    if totals and not horizontal:
        write_above(figure, groups, sums, [with_unit(value, digits=3) for value in sums])
    longest = max(sums, default=0) or 1
    if horizontal:
        styled(figure, title, x=y, height=max(HEIGHT, 220 + 40 * len(groups)))
        figure.update_xaxes(tickformat="~s", range=[0, 1.05 * longest], nticks=4)
        figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
        figure.update_yaxes(labels(groups, [with_unit(value, unit) for value in sums]))
    else:
        styled(figure, title, y=y)
        figure.update_yaxes(tickformat="~s", range=[0, 1.12 * longest])
        texts = ["<br>".join(wrap(str(group), 9)) for group in groups]
        figure.update_xaxes(showgrid=False, type="category", tickangle=0, tickvals=list(groups), ticktext=texts)
    figure.update_layout(barmode="stack", bargap=0.35)
    return figure


def write_above(figure: Figure, x: Sequence[Any], y: Sequence[float], texts: Sequence[str]) -> None:
    """Write texts above the ends of bars."""
    style = {"mode": "text", "textposition": "top center", "showlegend": False, "hoverinfo": "skip", "cliponaxis": False}
    figure.add_scatter(x=list(x), y=list(y), text=list(texts), **style)


def labels(names: Sequence[str], below: Sequence[str]) -> dict[str, Any]:
    """Tick labels of horizontal bars: the number is below the name, because on a phone it does not fit after the bar."""
    texts = [f"{' <br>'.join(wrap(name, _NAME))} <br><b>{number}</b> " for name, number in zip(names, below, strict=True)]
    return {"tickvals": list(names), "ticktext": texts}


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[Any]],
    title: str,
    *,
    xlabel: str,
    y: str,
    unit: str = "",
    markers: bool = False,
    tickformat: str = "~s",
) -> Figure:
    """Lines over x."""
    tint = colours(list(series))
    figure = go.Figure()
    for name, numbers in series.items():
        values = [None if number is None else float(number) for number in numbers]
        figure.add_scatter(
            x=list(x), y=values, name=words(name), mode="lines+markers" if markers else "lines", connectgaps=True,
            line={"width": 2.5, "color": tint[name]}, marker={"size": 5},
            customdata=[None if value is None else with_unit(value, unit) for value in values],
            hovertemplate=words(name) + ": %{customdata}<extra></extra>",
        )  # fmt: skip
    styled(figure, title, x=xlabel, y=y)
    figure.update_yaxes(tickformat=tickformat, rangemode="tozero")
    figure.update_layout(hovermode="x unified")
    return figure


def mark(
    figure: Figure,
    x: float,
    text: str,
    *,
    log: bool = False,
    colour: str = INK,
    dash: str = "dot",
    low: bool = False,
    anchor: str = "center",
) -> None:
    """A vertical line with a text above it, aligned by ``anchor``; with ``low`` the text is beside the line, at the bottom."""
    figure.add_vline(x=x, line={"color": colour, "width": 1.5, "dash": dash})
    figure.add_annotation(
        x=log10(x) if log else x, y=0.02 if low else 1, yref="paper", text=text, showarrow=False, yanchor="bottom",
        xanchor="left" if low else anchor, xshift=4 * low, font={"color": colour, "size": 12},
        bgcolor="rgba(255, 255, 255, 0.7)",
    )  # fmt: skip


def with_room(figure: Figure) -> Figure:
    """Make the figure high enough for a phone, where its title wraps and its legend has few columns below the axis."""
    title = "<br>".join(wrap(figure.layout.title.text, _TITLE))
    names = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    lines = 1
    if names and figure.layout.showlegend is not False:
        columns = int(_LEGEND / (_SWATCH + _LETTER * max(map(len, names))))
        lines = -(-len(names) // max(1, columns))
    more = _LINE * title.count("<br>")
    height = figure.layout.height + _LINE * (lines - 1) + more
    figure.update_layout(
        height=height, margin_t=figure.layout.margin.t + more, title={"text": title, "y": 1 - (34 + more / 2) / height}
    )
    return figure


def log_axis(figure: Figure, *, axis: str = "x", powers_of_two: tuple[float, float] | None = None) -> None:
    """Make an axis logarithmic; ``powers_of_two``: the range in which its ticks are powers of two, for tokens."""
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    update(type="log", rangemode="normal")
    if axis == "y":
        numbers = [y for trace in figure.data for y in trace.y or () if y]
        # Ticks at 1, 2 and 5, or at whole decades if there are many of them.
        update(dtick="D2" if not numbers or max(numbers) < 1000 * min(numbers) else 1)
        update(minor={"showgrid": False})
    if powers_of_two:
        low, high = powers_of_two
        ticks = [2**i for i in range(64) if low <= 2**i <= high]
        ticks = ticks[:: -(-len(ticks) // 6)]
        update(tickvals=ticks, ticktext=[binary(tick) for tick in ticks])


def binary(number: float) -> str:
    """A number of tokens, in Ki or Mi if that is a whole number: ``8Ki``."""
    for size, letter in ((2**20, "Mi"), (2**10, "Ki")):
        if number >= size and number % size == 0:
            return f"{number // size:.0f}{letter}"
    return f"{number:,.0f}"


def words(name: str) -> str:
    """``self_attention`` as ``self attention``."""
    return name.replace("_", " ")
