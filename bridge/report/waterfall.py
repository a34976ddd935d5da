"""Where the seconds of a mean step go, as one drawing: from the whole step down to the work at the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bridge.metrics.time_parts import PARTS
from bridge.metrics.why import PREFIX
from bridge.report.colours import COLOURS, PALETTE
from bridge.report.run_file import RecordedRun, is_whole
from bridge.text import seconds

WIDTH, ROW, TOP, LEFT, RIGHT = 960, 30, 6, 132, 144

TITLE = "From a step down to the work at the peak"


@dataclass(frozen=True)
class Bar:
    """One step of the waterfall.

    Attributes:
        name: of the part.
        start, length: of the bar, seconds.
        colour: of it.
    """

    name: str
    start: float
    length: float
    colour: str


def parts_of(run: RecordedRun) -> dict[str, float]:
    """Seconds of a mean step by part; empty where the run has none."""
    columns = {name: run.series(PREFIX + name) for name in PARTS if PREFIX + name in run.columns}
    if not columns:
        return {}
    if all(map(is_whole, columns.values())):
        return {name: sum(column) / len(column) for name, column in columns.items()}
    rows = [row for row in zip(*columns.values(), strict=True) if None not in row]
    return {name: sum(values) / len(rows) for name, values in zip(columns, zip(*rows, strict=True), strict=False)}


def bars(parts: Mapping[str, float]) -> list[Bar]:
    """The whole step, then what is lost from the largest to the smallest, each where the one before began; the work last."""
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
    """The drawing; names on the left, seconds and shares behind the bars."""
    whole = drawn[0].length or 1.0
    height = TOP + ROW * len(drawn) + 6
    scale = (WIDTH - LEFT - RIGHT) / whole
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(TITLE)}">']
    for i, bar in enumerate(drawn):
        y, x, width = TOP + ROW * i, LEFT + scale * bar.start, max(1.5, scale * bar.length)
        meaning = PARTS.get(bar.name, "the mean step")
        out.append(f"<g><title>{escape(f'{bar.name}: {meaning}')}</title>")
        out.append(_text(LEFT - 10, y + 19, bar.name, "end"))
        out.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" rx="3" style="fill:{bar.colour}"/>')
        out.append(_text(x + width + 8, y + 19, f"{seconds(bar.length)}, {bar.length / whole:.1%}", "start") + "</g>")
        if i:  # down from the bar above
            end = LEFT + scale * (bar.start + bar.length)
            out.append(f'<line class="grid" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 4}" y2="{y + 4}"/>')
    return "".join([*out, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
