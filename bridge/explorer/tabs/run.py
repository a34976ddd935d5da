"""A run that was trained: the panels of its report, step by step."""

from __future__ import annotations

from bridge.explorer import charts
from bridge.explorer.controls import Values
from bridge.explorer.figures import Figure
from bridge.explorer.view import Card, Column, Table, View
from bridge.metrics.why import why
from bridge.report import waterfall
from bridge.report.chart import fill
from bridge.report.facts import middle, notes_of, present
from bridge.report.host_log import tell_apart
from bridge.report.panels import SECTIONS as QUESTIONS
from bridge.report.run_file import RecordedRun, read_run
from bridge.text import digits_of, percent, significant, with_unit

KEY, TITLE = "run", "Run"
INTRODUCTION = (
    "Drop a run's metrics.jsonl, or the run-*.wandb file of an offline W&B run. It stays on the machine that serves this page."
)
CONTROLS = ()
SECTIONS = {"": CONTROLS}
PANELS = tuple(panel for section in QUESTIONS for panel in section.panels)
NUM_FIGURES = 1 + len(PANELS)

_PREFIX = "throughput/"


def view(path: str, values: Values) -> View:
    """The tab's contents for an uploaded file; ConfigError where it holds no run."""
    run = read_run(path)
    tell_apart(run)
    sentence = why(waterfall.parts_of(run))
    return View(
        facts=_facts(run),
        figures=(_waterfall(run), *(charts.figure(chart) if (chart := fill(panel, run)) else None for panel in PANELS)),
        table=_table(run),
        notes=[*([sentence] if sentence else []), *notes_of(run)],
        inputs={"rows": len(run.steps), "file": run.kind, **values},
    )


def _waterfall(run: RecordedRun) -> Figure | None:
    parts = waterfall.parts_of(run)
    return charts.falling(waterfall.bars(parts), waterfall.TITLE) if parts else None


def _facts(run: RecordedRun) -> list[Card]:
    last = run.steps[-1]
    facts = [Card("steps", "Last step", last, f"{last:,}", f"{len(run.steps):,} log points, {run.kind}")]
    for name, label, show in (
        ("tflops/device", "TFLOP/s per device", significant),
        ("mfu", "MFU", percent),
        ("tokens_per_sec", "Tokens per second", significant),
    ):
        numbers = present(run, _PREFIX + name)
        if numbers:
            typical = middle(numbers)
            facts.append(Card(name, f"{label}, median", typical, show(typical), f"last {show(numbers[-1])}"))
    for name, label, unit in (
        ("total_flops", "FLOPs so far", "FLOP"),
        ("total_tokens", "Tokens so far", ""),
    ):
        numbers = present(run, _PREFIX + name)
        if numbers:
            facts.append(Card(name, label, numbers[-1], with_unit(numbers[-1], unit), f"{numbers[-1]:,}"))
    return facts


def _table(run: RecordedRun) -> Table:
    columns = (
        Column("key", "Key"),
        *(Column(name, name, digits_of) for name in ("last", "median", "minimum", "maximum")),
    )
    rows = []
    for key in run.names()[:200]:
        numbers = present(run, key)
        rows.append((key, numbers[-1], middle(numbers), min(numbers), max(numbers)))
    return Table(columns, rows, "All keys of the run")
