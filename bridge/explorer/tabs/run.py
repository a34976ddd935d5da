"""A finished or running training run: the panels of its report."""

from __future__ import annotations

from dataclasses import replace

from bridge.explorer import charts
from bridge.explorer.controls import Values
from bridge.metrics.why import why
from bridge.report import waterfall
from bridge.report.chart import fill
from bridge.report.facts import all_keys, headlines, notes_of
from bridge.report.host_log import tell_apart
from bridge.report.panels import SECTIONS as QUESTIONS
from bridge.report.run_file import read_run
from bridge.report.view import View

KEY, TITLE = "run", "Run"
INTRODUCTION = (
    "Drop a run's metrics.jsonl, or the run-*.wandb file of an offline W&B run. It stays on the machine that serves this page."
)
CONTROLS = ()
SECTIONS = {"": CONTROLS}
PANELS = tuple(panel for section in QUESTIONS for panel in section.panels)
NUM_FIGURES = 1 + len(PANELS)


def view(path: str, values: Values) -> View:
    """The tab's contents for an uploaded file; ConfigError if it holds no run."""
    run = read_run(path)
    tell_apart(run)
    parts = waterfall.parts_of(run)
    sentence = why(parts)
    falling = charts.falling(waterfall.bars(parts), waterfall.TITLE) if parts else None
    return View(
        facts=headlines(run),
        figures=(falling, *(charts.figure(chart) if (chart := fill(panel, run)) else None for panel in PANELS)),
        table=replace(all_keys(run), title="All keys of the run"),
        notes=[*([sentence] if sentence else []), *notes_of(run)],
        inputs={"rows": len(run.steps), "file": run.kind, **values},
    )
