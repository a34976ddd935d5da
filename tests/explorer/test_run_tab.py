"""The tab of a run shows what the run's file holds."""

from bridge.explorer.controls import defaults
from bridge.explorer.tabs import run
from bridge.report.chart import fill
from bridge.report.run_file import read_run
from tests.report.test_run_file import row, write

VALUES = defaults(run.CONTROLS)


def test_facts_and_table(tmp_path):
    rows = [row(step) for step in (10, 20, 30)]
    view = run.view(str(write(tmp_path / "metrics.jsonl", rows)), VALUES)
    facts = {fact.key: fact.value for fact in view.facts}
    assert facts["steps"] == 30
    assert facts["mfu"] == rows[1]["throughput/mfu"]
    assert facts["total_flops"] == rows[-1]["throughput/total_flops"]
    assert len(view.figures) == run.NUM_FIGURES
    table = {record["key"]: record for record in view.table.as_records()}
    assert set(table) == set(rows[0]) - {"step"}
    assert table["throughput/flops/mlp"]["last"] == 15 * 10**14
    assert view.notes == []


def test_figures_are_the_panels_of_the_report(tmp_path):
    """Numbers, units and colours, in the same order; what a run has none of is not there."""
    rows = [{**row(step), "throughput/time/ideal": 0.1, "throughput/time/host": 0.3} for step in (10, 20, 30)]
    file = str(write(tmp_path / "metrics.jsonl", rows))
    view = run.view(file, VALUES)
    charts = [fill(panel, read_run(file)) for panel in run.PANELS]
    assert [figure is None for figure in view.figures[1:]] == [chart is None for chart in charts]
    for figure, chart in zip(view.figures[1:], charts, strict=True):
        if chart is not None:
            assert [list(trace.y) for trace in figure.data] == [list(values) for values in chart.series.values()]
            assert [trace.line.color for trace in figure.data] == [chart.colours[label] for label in chart.series]
    (bars,) = view.figures[0].data
    assert list(bars.y) == ["step", "host", "ideal"]
    assert [(round(start, 9), round(length, 9)) for start, length in zip(bars.base, bars.x, strict=True)] == [
        (0, 0.4),
        (0.1, 0.3),
        (0, 0.1),
    ]
    assert view.notes[0].startswith("Mean MFU 25.0%: of 400 ms per step")


def test_a_single_dip_of_a_long_run_is_drawn(tmp_path):
    rows = [{"step": step, "throughput/tflops/device": 20.0 if step == 12345 else 400.0 + step % 3} for step in range(20_000)]
    figures = run.view(str(write(tmp_path / "metrics.jsonl", rows)), VALUES).figures
    (drawn,) = (figure for figure in figures if figure is not None)
    assert min(drawn.data[0].y) == 20.0
    assert len(drawn.data[0].y) < 2000


def test_doubtful_runs_are_marked(tmp_path):
    file = write(tmp_path / "metrics.jsonl", [{"step": 1, "throughput/mfu": 1.2}, {"step": 2, "lm loss": 3.0}])
    assert any("above 100%" in note for note in run.view(str(file), VALUES).notes)
    file = write(tmp_path / "metrics.jsonl", [{"step": 2, "lm loss": 3.0}])
    assert any("ThroughputCallback" in note for note in run.view(str(file), VALUES).notes)
