"""What TensorBoard reads of a run: its own reader on the files of the tracker."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorboard", reason="pip install tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServersAccumulator

from bridge.metrics.trackers.tensorboard import TensorBoardTracker


def record(folder, rows, facts=None, **arguments):
    tracker = TensorBoardTracker(str(folder), **arguments)
    for step, row in rows.items():
        tracker.log(row, step)
    if facts:
        tracker.summary(facts)
    tracker.close()


def read(folder, reader=EventAccumulator):
    found = reader(str(folder))
    found.Reload()
    return found


def texts(found, tag):
    """step -> the last text of the tag."""
    return {event.step: json.loads(event.tensor_proto.string_val[0]) for event in found.Tensors(tag)}


def scalars(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_rows_are_read_back_with_units_and_all_digits_of_integers(tmp_path):
    total = 2**80 + 1
    record(
        tmp_path / "run",
        {10: {"throughput/mfu": 0.375, "throughput/total_flops": total, "note": "no number"}, 20: {"throughput/mfu": 0.5}},
        {"peak_flops": 989_400_000_000_001, "hf_token": "t"},
        config={"model": {"num_layers": 2}, "wandb_api_key": "k"},
    )
    found = read(tmp_path / "run")
    assert set(found.Tags()["scalars"]) == {"throughput/mfu", "throughput/total_flops"}
    assert scalars(found, "throughput/mfu") == [(10, 0.375), (20, 0.5)]
    assert scalars(found, "throughput/total_flops") == [(10, 2.0**80)]  # the nearest 32-bit float
    assert texts(found, "integers") == {10: {"throughput/total_flops": total}}
    assert texts(found, "facts") == {0: {"peak_flops": 989_400_000_000_001, "hf_token": "***"}}
    assert texts(found, "config") == {0: {"model": {"num_layers": 2}, "wandb_api_key": "***"}}
    about = found.SummaryMetadata("throughput/total_flops")
    assert about.plugin_data.plugin_name == "scalars"
    assert about.summary_description.endswith("[FLOP]")


def test_a_resumed_run_has_each_step_once_and_a_new_one_starts_over(tmp_path):
    first = {step: {"x": step, "n": 2**30 + step} for step in (10, 20, 30)}
    record(tmp_path, first)
    record(tmp_path, {step: {"x": 2 * step, "n": 2**31 + step} for step in (30, 40)}, step=20)
    found = read(tmp_path)
    assert scalars(found, "x") == [(10, 10.0), (20, 20.0), (30, 60.0), (40, 80.0)]
    assert texts(read(tmp_path, ServersAccumulator), "integers") == {
        10: {"n": 2**30 + 10},
        20: {"n": 2**30 + 20},
        30: {"n": 2**31 + 30},
        40: {"n": 2**31 + 40},
    }
    record(tmp_path, {10: {"x": 7.0}})
    assert scalars(read(tmp_path), "x") == [(10, 7.0)]


_FULL = """
import logging, resource, sys
from types import SimpleNamespace
from bridge.metrics.trackers import open_trackers

logging.basicConfig(format="%(levelname)s %(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # no file may grow beyond
options = SimpleNamespace(metrics_file=sys.argv[1] + "/metrics.jsonl", tensorboard_dir=sys.argv[1])
trackers = open_trackers(options)
for step in range(1, 101):
    trackers.log({f"key{i}": 1 for i in range(5)}, step, commit=True)
trackers.close()
print("trained to the end")
"""


def test_a_full_disk_is_one_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "trained to the end\n"
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("WARNING TensorBoardTracker stopped: [Errno 27] File too large")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100
