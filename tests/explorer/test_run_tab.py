"""The tab of a run shows what the run's file holds."""

from bridge.explorer.controls import defaults
from bridge.explorer.tabs import run
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


def test_components_are_drawn_as_logged(tmp_path):
    rows = [row(step) for step in (10, 20, 30)]
    file = str(write(tmp_path / "metrics.jsonl", rows))
    drawn = {trace.name: list(trace.y) for trace in run.view(file, {**VALUES, "components": "FLOPs"}).figures[2].data}
    assert drawn == {
        name.replace("_", " "): [one[f"throughput/flops/{name}"] for one in rows] for name in ("mlp", "core_attention")
    }


def test_smoothing():
    assert run.smoothed([1, None, 3, 5], 2) == [1, None, 2, 4]


def test_doubtful_runs_are_marked(tmp_path):
    file = write(tmp_path / "metrics.jsonl", [{"step": 1, "throughput/mfu": 1.2}, {"step": 2, "lm loss": 3.0}])
    assert any("above 100 %" in note for note in run.view(str(file), VALUES).notes)
    file = write(tmp_path / "metrics.jsonl", [{"step": 2, "lm loss": 3.0}])
    assert any("ThroughputCallback" in note for note in run.view(str(file), VALUES).notes)
