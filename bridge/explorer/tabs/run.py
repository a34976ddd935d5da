"""A run that was trained: throughput, MFU and where the work went, step by step."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from bridge.cli.console import with_unit
from bridge.explorer import figures
from bridge.explorer.controls import Choice, Slider, Values
from bridge.explorer.view import Column, Fact, Table, View
from bridge.report.facts import notes_of, present
from bridge.report.run_file import Run, read_run

KEY, TITLE = "run", "Run"
INTRODUCTION = (
    "Drop a run's metrics.jsonl, or the run-*.wandb file of an offline W&B run. It stays on the machine that serves this page."
)
CONTROLS = (
    Choice(key="components", label="Components as", options=("share", "FLOPs"), default="share", buttons=True),
    Slider(key="smooth", label="Mean over log points", minimum=1, maximum=50, step=1, default=1),
)
SECTIONS = {"": CONTROLS}
NUM_FIGURES = 4

_PREFIX = "throughput/"
_COMPONENT = _PREFIX + "flops/"
#: The most points a figure gets of one series: more are not seen.
_POINTS = 2000


def view(path: str, values: Values) -> View:
    """The tab's contents for an uploaded file; ConfigError where it holds no run."""
    run = read_run(path)
    steps = run.series("step")
    return View(
        facts=_facts(run),
        figures=(
            _line(run, steps, values, ("tflops/device",), "Throughput of a device", "TFLOP/s", "~g"),
            _line(run, steps, values, ("mfu", "hfu"), "Utilisation", "of the dense peak", ".0%"),
            _components(run, steps, values),
            _line(run, steps, values, ("padding_fraction", "data_wait_fraction"), "Padding and data wait", "fraction", ".1%"),
        ),
        table=_table(run),
        notes=notes_of(run),
        inputs={"rows": len(run.rows), "file": run.kind, **values},
    )


def smoothed(numbers: list[Any], window: int) -> list[Any]:
    """The mean of the last ``window`` values that are there."""
    result: list[Any] = []
    recent: list[float] = []
    for number in numbers:
        if number is None:
            result.append(None)
            continue
        recent = [*recent, number][-window:]
        result.append(fmean(recent))
    return result


def _thin(items: list[Any], count: int) -> list[Any]:
    return items[:: max(1, -(-count // _POINTS))]


def _line(run: Run, steps: list[Any], values: Values, names: tuple[str, ...], title: str, y: str, ticks: str) -> figures.Figure:
    series = {name: _thin(smoothed(run.series(_PREFIX + name), values["smooth"]), len(steps)) for name in names}
    there = {name: numbers for name, numbers in series.items() if any(number is not None for number in numbers)}
    x, few = _thin(steps, len(steps)), len(steps) <= 60
    figure = figures.lines(x, there, title, xlabel="step", y=y, tickformat=ticks, markers=few)
    figure.update_traces(hovertemplate="%{y}")
    if not there:
        _say(figure, "not in this file")
    return figure


def _components(run: Run, steps: list[Any], values: Values) -> figures.Figure:
    keys = [key for key in run.names() if key.startswith(_COMPONENT)]
    columns = {key.removeprefix(_COMPONENT): [row.get(key) for row in run.rows] for key in keys}
    parts = {name: _thin(smoothed(numbers, values["smooth"]), len(steps)) for name, numbers in columns.items()}
    # The totals and the parts come together in a row, or not at all.
    there = [i for i, numbers in enumerate(zip(*parts.values(), strict=True)) if None not in numbers] if parts else []
    parts = {name: [numbers[i] for i in there] for name, numbers in parts.items()}
    thin = _thin(steps, len(steps))
    share = values["components"] == "share"
    figure = figures.area(
        [thin[i] for i in there],
        parts,
        "Work by component",
        xlabel="step",
        y="share" if share else "FLOPs a log point",
        unit="FLOP",
    )
    if share:
        figure.update_traces(groupnorm="percent")
        figure.update_yaxes(tickformat=".0f", ticksuffix=" %", range=[0, 100])
    if not parts:
        _say(figure, "not in this file")
    return figure


def _say(figure: figures.Figure, text: str) -> None:
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)


def _facts(run: Run) -> list[Fact]:
    last = run.rows[-1]["step"]
    facts = [Fact("steps", "Last step", last, f"{last:,}", f"{len(run.rows):,} log points, {run.kind}")]
    for name, label, show in (
        ("tflops/device", "TFLOP/s a device", lambda value: f"{value:,.4g}"),
        ("mfu", "MFU", lambda value: f"{value:.1%}"),
        ("tokens_per_sec", "Tokens a second", lambda value: f"{value:,.4g}"),
    ):
        numbers = present(run, _PREFIX + name)
        if numbers:
            middle = median(numbers)
            facts.append(Fact(name, f"{label}, median", middle, show(middle), f"last {show(numbers[-1])}"))
    for name, label, unit in (
        ("total_flops", "FLOPs so far", "FLOP"),
        ("total_tokens", "Tokens so far", ""),
    ):
        numbers = present(run, _PREFIX + name)
        if numbers:
            facts.append(Fact(name, label, numbers[-1], with_unit(numbers[-1], unit), f"{numbers[-1]:,}"))
    return facts


def _table(run: Run) -> Table:
    def show(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"

    columns = (
        Column("key", "Key"),
        *(Column(name, name, show) for name in ("last", "median", "minimum", "maximum")),
    )
    rows = []
    for key in run.names()[:200]:
        numbers = present(run, key)
        rows.append((key, numbers[-1], median(numbers), min(numbers), max(numbers)))
    return Table(columns, rows, "All keys of the run")
