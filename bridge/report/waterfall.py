"""Where the seconds of a mean step go, as one drawing: from the whole step down to the work at the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bridge.metrics.time_parts import PARTS
from bridge.metrics.why import PREFIX
from bridge.report.colours import COLOURS, PALETTE
from bridge.report.run_file import RecordedRun
from bridge.report.thin import is_whole
from bridge.text import seconds

WIDTH, ROW, TOP, LEFT, RIGHT = 960, 30, 6, 132, 144
#: The same on a phone: width, and height of a row.
NARROW, NARROW_ROW = 340, 46

TITLE = "From a step down to the work at the peak"


@dataclass(frozen=True)
class Bar:
    """One bar of the waterfall.

    Attributes:
        name: the part of the step.
        start, length: where the bar begins and how long it is, in seconds.
        colour: its color.
    """

    name: str
    start: float
    length: float
    colour: str


def parts_of(run: RecordedRun) -> dict[str, float]:
    """Seconds of the mean step by part; empty if the run has none."""
    if run.whole is not None:
        return {name: run.whole.means[PREFIX + name] for name in PARTS if PREFIX + name in run.whole.means}
    if not (columns := {name: run.series(PREFIX + name) for name in PARTS if PREFIX + name in run.columns}):
        return {}
    if all(map(is_whole, columns.values())):
        return {name: sum(column) / len(column) for name, column in columns.items()}
    rows = [row for row in zip(*columns.values(), strict=True) if None not in row]
    return {name: sum(values) / len(rows) for name, values in zip(columns, zip(*rows, strict=True), strict=False)}


def bars(parts: Mapping[str, float]) -> list[Bar]:
    """The whole step, then the losses, largest first, each ending where the one before began; the work at the peak last."""
    losses = sorted((name for name in parts if name != "ideal" and parts[name] > 0), key=lambda name: -parts[name])
    end = sum(parts.values())
    found = [Bar("step", 0.0, end, PALETTE["grey"])]
    for name in losses:
        end -= parts[name]
        found.append(Bar(name, max(0.0, end), parts[name], COLOURS[name]))
    if "ideal" in parts:
        found.append(Bar("ideal", 0.0, parts["ideal"], COLOURS["ideal"]))
    return found


def svg(drawn: Sequence[Bar]) -> str:
    """The drawing, with names on the left and seconds and shares after the bars."""
    scale = (WIDTH - LEFT - RIGHT) / (drawn[0].length or 1.0)
    out = [_begin("", WIDTH, TOP + ROW * len(drawn) + 6)]
    for i, bar in enumerate(drawn):
        y, x, width = TOP + ROW * i, LEFT + scale * bar.start, max(1.5, scale * bar.length)
        out.append(f"<g>{_title(bar)}{_text(LEFT - 10, y + 19, bar.name, 'end')}{_rect(bar, x, y + 4, width, ROW - 8)}")
        out.append(_text(x + width + 8, y + 19, measured(bar, drawn), "start") + "</g>")
        if i:  # down from the bar above
            end = LEFT + scale * (bar.start + bar.length)
            out.append(f'<line class="grid" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 4}" y2="{y + 4}"/>')
    return "".join([*out, "</svg>"])


def narrow_svg(drawn: Sequence[Bar]) -> str:
    """The same for a phone: names and numbers are above the bars, which use the whole width."""
    scale = NARROW / (drawn[0].length or 1.0)
    out = [_begin("narrow", NARROW, NARROW_ROW * len(drawn) + 6)]
    for i, bar in enumerate(drawn):
        y = NARROW_ROW * i
        out.append(f"<g>{_title(bar)}{_text(0, y + 16, bar.name, 'start')}{_text(NARROW, y + 16, measured(bar, drawn), 'end')}")
        out.append(_rect(bar, scale * bar.start, y + 22, max(1.5, scale * bar.length), NARROW_ROW - 30) + "</g>")
    return "".join([*out, "</svg>"])


def measured(bar: Bar, drawn: Sequence[Bar]) -> str:
    """The seconds of a bar and their share of the step."""
    return f"{seconds(bar.length)}, {bar.length / (drawn[0].length or 1.0):.1%}"


def meaning(bar: Bar) -> str:
    """What a bar means."""
    return PARTS.get(bar.name, "the mean step")


def _begin(kind: str, width: int, height: int) -> str:
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(TITLE)}">'


def _title(bar: Bar) -> str:
    return f"<title>{escape(f'{bar.name}: {meaning(bar)}')}</title>"


def _rect(bar: Bar, x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="3" style="fill:{bar.colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
