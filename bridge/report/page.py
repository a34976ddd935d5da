"""A run as one self-contained HTML file: no network, readable without scripts, light or dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from bridge import __version__
from bridge.metrics.why import why
from bridge.report import html, overlay, waterfall
from bridge.report.chart import Chart
from bridge.report.drawing import numbers, svg
from bridge.report.facts import MOST_KEYS, all_keys, headlines, notes_of
from bridge.report.panels import SECTIONS
from bridge.report.run_file import RecordedRun

#: With this policy the browser blocks all network access, whatever the page contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_FOLDED = '<details class="data"><summary>Values</summary>'


def render(run: RecordedRun, *others: RecordedRun, sources: Sequence[str] = ()) -> str:
    """The whole page. All names and texts of the run are escaped, because its file may be untrusted.

    Args:
        run: the run.
        others: runs to overlay.
        sources: the paths of the runs, which label them if their names repeat.
    """
    runs = overlay.named([run, *others], sources or [one.name for one in (run, *others)])
    title = escape(" and ".join(runs))
    whose = {name: f": {escape(name)}" if len(runs) > 1 else "" for name in runs}
    parts = {name: waterfall.parts_of(one) for name, one in runs.items()}
    sections, charts = [], []
    for section in SECTIONS:
        filled = [chart for panel in section.panels for chart in overlay.charts(panel, runs)]
        charts += filled
        if filled:
            figures = "".join(map(_figure, filled))
            wide = ' class="wide"' if len(filled) > 1 else ""
            sections.append(
                f"<section{wide}><h2>{escape(section.title)}</h2>"
                f'<p class="soft">{escape(section.question)}</p><div class="panels">{figures}</div></section>'
            )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title} - bridge report</title><style>{_asset('page.css')}</style></head><body>"
        f"<header>{''.join(_head(name, one, parts[name]) for name, one in runs.items())}</header>"
        f"<main>{''.join(_waterfall(parts[name], whose[name]) for name in runs)}{''.join(sections)}"
        f"{''.join(_table(one, whose[name]) for name, one in runs.items())}</main>"
        f"<footer>bridge {__version__}. Numbers are those of the run's file; a long run is drawn with the extremes of every "
        "stretch.</footer>"
        f'<script type="application/json" id="numbers">{_json([numbers(chart) for chart in charts])}</script>'
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def _head(name: str, run: RecordedRun, parts: Mapping[str, float]) -> str:
    sentence = why(parts)
    reason = f'<p class="why">{escape(sentence)}</p>' if sentence else ""
    return f"<h1>{escape(name)}</h1>{reason}{html.facts(headlines(run))}{html.notes(notes_of(run))}"


def _waterfall(parts: Mapping[str, float], whose: str) -> str:
    if not parts:
        return ""
    drawn = waterfall.bars(parts)
    return (
        '<section class="wide"><h2>Where the time of a step goes</h2>'
        '<p class="soft">What lies between the MFU and 100%, in the mean over the run?</p>'
        f'<figure class="still"><figcaption><b>{escape(waterfall.TITLE)}{whose}</b></figcaption>'
        f"{waterfall.svg(drawn)}{waterfall.narrow_svg(drawn)}{_values(drawn)}</figure></section>"
    )


def _values(drawn: Sequence[waterfall.Bar]) -> str:
    """The waterfall as a table; the page's script makes the tables of the charts from the numbers in the page."""
    rows = "".join(
        f"<tr><th>{escape(bar.name)}</th><td>{waterfall.measured(bar, drawn)}</td><td class='soft'>"
        f"{escape(waterfall.meaning(bar))}</td></tr>"
        for bar in drawn
    )
    return f'{_FOLDED}<div class="table"><table><tbody>{rows}</tbody></table></div></details>'


def _figure(chart: Chart) -> str:
    entries = "".join(
        f'<span><i style="background:{chart.colours[label]}"></i>{escape(label.replace("_", " "))}</span>'
        for label in chart.series
    )
    unit = f"<span>{escape(chart.scale.unit)}</span>" if chart.scale.unit else ""
    several = len(chart.panel.names) > 1 or len(chart.series) > 1
    legend = f'<span class="legend">{entries}</span>' if several and chart.panel.kind != "heat" else ""
    caption = f"<figcaption><b>{escape(chart.panel.title)}</b>{unit}{legend}</figcaption>"
    return f"<figure>{caption}{svg(chart)}{_FOLDED}</details></figure>"


def _table(run: RecordedRun, whose: str) -> str:
    """Every key of the run, declared or not."""
    count = len(run.names())
    left_out = f"<p class='soft'>{count - MOST_KEYS:,} more keys are left out.</p>" if count > MOST_KEYS else ""
    return f"<details><summary>All {count:,} keys of the run{whose}</summary>{html.table(all_keys(run))}{left_out}</details>"


def _json(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("bridge.report").joinpath(name).read_text(encoding="utf-8")
