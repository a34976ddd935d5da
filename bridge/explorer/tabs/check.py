"""Compares a reported throughput with every way of counting: which convention or which usual difference gives it."""

from __future__ import annotations

from bridge import hardware
from bridge.config.named import DEFAULT_LENGTH
from bridge.explorer import figures
from bridge.explorer.controls import LONGEST_LENGTH, Select, Slider, Values
from bridge.explorer.sources import Source, read
from bridge.planning.check import Check, CountedWay, check
from bridge.planning.counting_rules import RULES
from bridge.report.view import Card, Column, Table, View, in_flop
from bridge.text import with_unit

KEY, TITLE = "check", "Check"
INTRODUCTION = "A number that somebody reported: which convention it was counted in, or which usual mistake it shows."
#: Unit of the reported number on the page -> as ``check`` spells it.
UNITS = {"TFLOP/s": "TFLOP/s", "% of the peak": "%"}
DEVICES = tuple(peak.words.upper() for peak in hardware.PEAKS if "bf16" in peak.tflops)
CONTROLS = (
    Slider(key="length", label="Tokens per row", minimum=128, maximum=LONGEST_LENGTH, step=128, default=DEFAULT_LENGTH),
    Slider(key="speed", label="Tokens per second and device", minimum=0.1, maximum=1e6, step=0.1, default=13812.0),
    Slider(key="reported", label="Reported", minimum=0.01, maximum=10000.0, step=0.01, default=750.0, info="Of one device."),
    Select(key="unit", label="in", options=tuple(UNITS), default="TFLOP/s", buttons=True),
    Select(
        key="recompute",
        label="It counts recomputation (HFU)",
        options=("no", "full", "selective"),
        default="no",
        buttons=True,
    ),
)
MACHINE = (
    Select(key="device", label="Device", options=DEVICES, default="H100"),
    Slider(key="devices", label="Devices of the job", minimum=1, maximum=16384, step=1, default=8),
)
SECTIONS = {"": CONTROLS, "Device": MACHINE}
NUM_FIGURES = 1


def view(source: Source, values: Values) -> View:
    """The tab's contents; ConfigError if the model or the numbers are impossible."""
    found = checked(source, values)
    best = min((*found.conventions, *found.mistakes), key=lambda way: way.distance)
    ours = found.under("megatron")
    return View(
        facts=[
            Card("reported", "Reported", values["reported"], f"{values['reported']:g} {values['unit']}", "of one device"),
            Card("nearest", "Nearest", best.ratio, found.shown(best), best.name.replace("_", " ")),
            Card("megatron", "By megatron", ours.flops_per_second, found.shown(ours), f"{(ours.ratio or 0) - 1:+.1%}"),
        ],
        figures=(_bars(found),),
        table=_table(found),
        notes=[found.verdict],
        inputs={"model": found.name, **values},
    )


def checked(source: Source, values: Values) -> Check:
    """The reported run, compared with every way of counting."""
    return check(
        read(source),
        sequence_length=values["length"],
        tokens_per_second=f"{values['speed']:.10g}",
        devices=values["devices"],
        device_name=values["device"],
        reported=f"{values['reported']:.10g}{UNITS[values['unit']]}",
        recompute=None if values["recompute"] == "no" else values["recompute"],
    )


def _bars(found: Check) -> figures.Figure:
    ways = found.conventions
    parts: dict[str, list[float]] = {}
    for i, way in enumerate(ways):
        for component, flops in found.components(way).items():
            parts.setdefault(component, [0.0] * len(ways))[i] = flops * float(found.tokens_per_second or 0)
    labels = [way.convention.replace("_", " ") for way in ways]
    figure = figures.stacked(labels, parts, "What each convention gives", y="FLOP/s per device", unit="FLOP/s", horizontal=True)
    if found.reported is not None:
        told = float(found.reported.number) * (1 if found.reported.unit == "FLOP/s" else found.case.peak or 0)
        figures.mark(figure, told, "reported", anchor="right")
        figure.update_xaxes(range=[0, 1.05 * max(told, *(sum(values) for values in zip(*parts.values(), strict=True)))])
    return figure


def _table(found: Check) -> Table:
    columns = (
        Column("convention", "Convention"),
        Column("difference", "Usual difference"),
        Column("flops_per_token", "FLOPs per token", in_flop),
        Column("flops_per_second", "FLOP/s per device", lambda value: with_unit(value, "FLOP/s")),
        Column("utilisation", "Of the peak", lambda value: f"{value:.2%}"),
        Column("ratio", "Over reported", lambda value: f"{value:.4f}"),
        Column("fits", "Fits"),
    )

    def row(way: CountedWay) -> tuple[object, ...]:
        says = "; ".join(way.says)
        fits = "yes" if found.agrees(way) else ""
        return (way.convention, says, way.flops_per_token, way.flops_per_second, way.utilisation, way.ratio, fits)

    nearest: dict[str, CountedWay] = {}
    for way in sorted(found.mistakes, key=lambda way: way.distance):
        nearest.setdefault(way.rules[-1], way)
    ways = [*found.conventions, *(nearest[name] for name in RULES if name in nearest)]
    return Table(columns, [row(way) for way in ways], "Every convention, and the usual differences where each comes nearest")
