"""Bytes against tokens: the published comparison of a byte-latent with a BPE transformer, and when its claim holds."""

from __future__ import annotations

import plotly.graph_objects as go

from bridge.explorer import figures
from bridge.explorer.controls import Slider, Values
from bridge.explorer.sources import Source
from bridge.flops import ConfigError
from bridge.planning.exhibits.byte_latent import PUBLISHED, compare, iso_cost_curve
from bridge.report.view import Card, Column, Table, View

KEY, TITLE = "blt", "BLT against BPE"
INTRODUCTION = (
    "Forward FLOPs for one byte of text, at 4.4 bytes per BPE token and a context of 8,192 bytes. BLT reads bytes with small "
    "local models and runs its large latent transformer once per patch."
)
CONTROLS = (
    Slider(key="patch_size", label="Patch size, bytes", minimum=1.0, maximum=10.0, step=0.1, default=4.4),
    Slider(key="d_model", label="Width of the large transformers, d_model", minimum=512, maximum=8192, step=128, default=2560),
    Slider(key="local_layers", label="Local layers, encoder and decoder", minimum=2, maximum=24, step=2, default=10),
)
SECTIONS = {"": CONTROLS}
NUM_FIGURES = 2

_SIZES = tuple(i / 10 for i in range(10, 101))
_PARTS = {"BPE": "#0072b2", "BLT global": "#e69f00", "BLT local": "#009e73"}


def view(source: Source, values: Values) -> View:
    """The tab's contents; the model above the tabs is not used."""
    patch_size, d_model, layers = values["patch_size"], int(values["d_model"]), int(values["local_layers"])
    result = compare(patch_size, d_model, layers)
    word = "more" if result.advantage > 0 else "less"
    facts = [
        Card("bpe_per_byte", "BPE", result.bpe_per_byte, f"{result.bpe_per_byte:.2e}", "FLOPs per byte"),
        Card("blt_global", "BLT global", result.blt_global, f"{result.blt_global:.2e}", "FLOPs per byte, latent transformer"),
        Card("blt_local", "BLT local", result.blt_local, f"{result.blt_local:.2e}", "FLOPs per byte, encoder and decoder"),
        Card("blt_total", "BLT total", result.blt_total, f"{result.blt_total:.2e}", "FLOPs per byte"),
        Card("advantage", "BLT against BPE", result.advantage, f"{result.advantage:+.1f} %", f"BLT costs {word}"),
    ]
    rows = [(fact.key, fact.value) for fact in facts]
    columns = (Column("name", "Quantity", figures.words), Column("value", "Value", lambda value: f"{value:,.10g}"))
    return View(
        facts=facts,
        figures=(
            _bars(result.bpe_per_byte, result.blt_global, result.blt_local),
            _iso_cost(values, result.blt_total, result.bpe_per_byte),
        ),
        table=Table(columns, rows, "Forward FLOPs per byte; the last in percent"),
        notes=_notes(result.notice),
        inputs=dict(values),
    )


def _bars(bpe: float, blt_global: float, blt_local: float) -> figures.Figure:
    parts = {"BPE": (bpe, 0), "BLT global": (0, blt_global), "BLT local": (0, blt_local)}
    figure = figures.stacked(["BPE", "BLT"], parts, "Forward FLOPs for a byte of text", y="FLOPs per byte", totals=False)
    for trace in figure.data:
        trace.marker.color = _PARTS[trace.name]
    sums = [bpe, blt_global + blt_local]
    figures.write_above(figure, ["BPE", "BLT"], sums, [f"{value:.2e}" for value in sums])
    return figure


def _iso_cost(values: Values, total: float, bpe: float) -> figures.Figure:
    """Widths of equal cost for all patch sizes, and the square-root law through the current point."""
    layers, now = int(values["local_layers"]), (values["patch_size"], values["d_model"])
    figure = go.Figure()
    for name, cost, colour in (("as much as this BLT", total, "#e69f00"), ("as much as this BPE", bpe, "#0072b2")):
        xs, ys = _curve(cost, layers)
        figure.add_scatter(
            x=xs, y=ys, name=name, mode="lines", line={"color": colour, "width": 2.5},
            hovertemplate="%{x:.1f} bytes: d = %{y:,.0f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=list(_SIZES), y=[now[1] * (size / now[0]) ** 0.5 for size in _SIZES], name="root of the patch size", mode="lines",
        line={"color": "#7a7a7a", "width": 1.5, "dash": "dash"}, hovertemplate="%{x:.1f} bytes: d = %{y:,.0f}<extra>root</extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[now[0]], y=[now[1]], name="now", mode="markers",
        marker={"size": 13, "color": "#d55e00", "symbol": "diamond", "line": {"color": "white", "width": 1.5}},
        hovertemplate="%{x:.1f} bytes: d = %{y:,.0f}<extra>now</extra>",
    )  # fmt: skip
    figures.styled(figure, "Widths of equal cost", x="patch size, bytes", y="latent d_model")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _curve(per_byte: float, layers: int) -> tuple[list[float], list[float]]:
    """Patch sizes and widths of equal cost; sizes at which the local models alone cost as much are left out."""
    points = []
    for size in _SIZES:
        try:
            points += iso_cost_curve([size], per_byte, layers)
        except ConfigError:
            continue
    return [point.patch_size for point in points], [point.width for point in points]


def _notes(notice: str) -> list[str]:
    claim = (
        "Patch size and width can rise together at equal cost only while the width grows about as the square root of the patch "
        "size: the latent transformer costs about 24 L d^2 per patch. Below a line of equal cost is cheaper."
    )
    heads = f"Note: {notice} (the {PUBLISHED.heads} heads of the published comparison)." if notice else ""
    return [claim, *([heads] if heads else [])]
