"""JSON lines: every digit, whole lines, and what a restart makes of an old file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from bridge.metrics.trackers.jsonl import JsonlTracker, summary_path
from bridge.metrics.trackers.tracker import Trackers


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_holds_one_object_per_row_with_exact_integers(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"throughput/total_flops": 10**30 + 1, "loss": math.nan, "numpy": __import__("numpy").float64(0.5)}, 10)
    assert rows(path) == [{"step": 10, "throughput/total_flops": 10**30 + 1, "loss": "nan", "numpy": 0.5}]
    tracker.summary({"device": "X", "layers": (1, 2)})
    tracker.summary({"done": True})
    tracker.close()
    assert json.loads((tmp_path / "run" / "metrics.summary.json").read_text()) == {
        "device": "X",
        "layers": [1, 2],
        "done": True,
    }


def test_a_resumed_run_drops_the_rows_of_steps_that_are_trained_again_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
    tracker = JsonlTracker(path, step=20)
    tracker.log({}, 30)
    assert rows(path) == [{"step": 10}, {"step": 20}, {"step": 30}]


def test_a_new_run_keeps_the_old_file_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n')
    JsonlTracker(path).log({}, 5)
    assert rows(path) == [{"step": 5}]
    assert rows(tmp_path / "metrics.jsonl.previous") == [{"step": 10}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_warning(caplog):
    trackers = Trackers([JsonlTracker("/dev/full")])
    for step in (1, 2, 3):
        trackers.log({"x": 1}, step, commit=True)
    trackers.close()
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_a_restart_keeps_rows_up_to_its_step_and_whole_lines_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 19}\n{"note": "before steps were counted"}\n{"step": 20}\n'
    path.write_text(kept + '{"step": 21}\nno json\n[1, 2]\n\n{"step": 3}')
    JsonlTracker(path, step=20).close()
    assert path.read_text() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]  # nothing partial, nothing aside


def test_an_empty_file_is_not_kept_aside_and_no_file_is_no_failure(tmp_path):
    for path in (tmp_path / "empty.jsonl", tmp_path / "absent.jsonl"):
        if path.stem == "empty":
            path.touch()
        JsonlTracker(path).close()
        JsonlTracker(path, step=5).close()
        assert path.read_bytes() == b""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["absent.jsonl", "empty.jsonl"]


def test_facts_keep_no_secret_and_stand_beside_the_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    tracker = JsonlTracker(path)
    tracker.summary({"hf_token": "t", "total": 2**80 + 1})
    tracker.close()
    assert summary_path(path) == tmp_path / "rows.summary.json"
    assert json.loads(summary_path(path).read_text()) == {"hf_token": "***", "total": 2**80 + 1}


def test_a_pipe_is_written_to_as_it_is():
    reading, writing = os.pipe()
    tracker = JsonlTracker(f"/dev/fd/{writing}", step=7)
    tracker.log({"x": 1}, 8)
    tracker.summary({"device": "X"})  # there is no place beside a pipe
    tracker.close()
    os.close(writing)
    with open(reading) as lines:
        assert lines.read() == '{"step": 8, "x": 1}\n'


def test_a_runs_folder_stands_for_its_usual_file(tmp_path):
    for name, shown in (("metrics.jsonl", "a run"), ("rows.jsonl", "a run/rows.jsonl")):
        path = Path("a run") / name
        tracker = JsonlTracker(tmp_path / path)
        tracker.close()
        tracker.path = path
        assert tracker.how_to_look() == [f"metrics: a run/{name}", f"report: bridge report '{shown}'"]
