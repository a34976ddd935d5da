"""A Megatron job's own rates beside ours, marked as theirs."""

from __future__ import annotations

import json

import pytest

from bridge.cli.main import main
from bridge.flops import ConfigError
from bridge.report.host_log import put_beside, tell_apart
from bridge.report.run_file import RecordedRun
from bridge.report.runs import open_run

LINES = """\
[2026-11-28 10:00:00] iteration       10/     100 | consumed samples:           80 | elapsed time per iteration (ms): 812.5 | \
throughput per GPU (TFLOP/s/GPU): 401.2 | learning rate: 1.0E-03 | global batch size:     8 |
saving checkpoint at iteration      10 to /checkpoints
 [2026-11-28 10:00:10] iteration       20/     100 | consumed samples:          160 | elapsed time per iteration (ms): 1e3 |
"""


def test_lines_of_the_standard_output(tmp_path):
    log = tmp_path / "job.log"
    log.write_text(LINES)
    run = RecordedRun("metrics.jsonl")
    run.take([{"step": 10, "throughput/tflops/device": 380.0}, {"step": 30, "throughput/mfu": 0.4}])
    put_beside(run, log)
    assert run.rows == [
        {"step": 10, "throughput/tflops/device": 380.0, "host/tflops/device": 401.2, "host/step_time": 0.8125},
        {"step": 20, "host/step_time": 1.0},
        {"step": 30, "throughput/mfu": 0.4},
    ]


def test_a_log_of_something_else_is_one_sentence(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("iteration 3 of something\n")
    with pytest.raises(ConfigError, match="job.log holds no rates of a Megatron loop; name the standard output"):
        put_beside(RecordedRun("metrics.jsonl"), log)
    with pytest.raises(ConfigError, match="none.log cannot be read: No such file"):
        put_beside(RecordedRun("metrics.jsonl"), tmp_path / "none.log")


@pytest.mark.parametrize("key", ["throughput", "throughput/tflops/device"])
def test_their_wandb_run(tmp_path, key):
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(silent=True, console="off")
    theirs = wandb.init(dir=str(tmp_path), mode="offline", settings=settings)
    theirs.log({key: 401.2, "iteration-time": 0.8125}, step=10)
    theirs.finish()
    wandb.teardown()  # only then is the file surely written
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    run = RecordedRun("metrics.jsonl")
    run.take([{"step": 10, "throughput/tflops/device": 380.0}])
    put_beside(run, file)
    assert run.rows == [{"step": 10, "throughput/tflops/device": 380.0, "host/tflops/device": 401.2, "host/step_time": 0.8125}]


@pytest.mark.parametrize("key", ["throughput", "throughput/tflops/device"])
def test_their_tensorboard_files(tmp_path, key):
    """A job and the one that went on from its checkpoint, whose step 20 is the one that counts."""
    summary = pytest.importorskip("torch.utils.tensorboard", reason="pip install tensorboard")
    for job, rows in (("first", {10: 401.2, 20: 7.0}), ("second", {20: 402.3})):
        writer = summary.SummaryWriter(str(tmp_path / job))
        for step, rate in rows.items():
            writer.add_scalar(key, rate, step)
            writer.add_scalar("iteration-time", rate / 512, step)
            writer.add_scalar("lm loss", 3.0, step)
            writer.add_scalar("lm loss vs samples", 3.0, step * 8)
        writer.close()
    run = RecordedRun("metrics.jsonl")
    run.take([{"step": 10, "throughput/tflops/device": 380.0}])
    put_beside(run, tmp_path)
    assert run.rows == [
        {"step": 10, "throughput/tflops/device": 380.0, "host/tflops/device": 401.2, "host/step_time": 0.7835938},
        {"step": 20, "host/tflops/device": 402.3, "host/step_time": 0.7857422},
    ]
    (file,) = (tmp_path / "first").iterdir()
    run = RecordedRun("metrics.jsonl")
    put_beside(run, file)
    assert [row["host/tflops/device"] for row in run.rows] == [401.2, 7.0]


@pytest.mark.parametrize("key", ["throughput", "throughput/tflops/device"])
def test_a_wandb_run_of_theirs_that_ours_are_in(tmp_path, key):
    """Their numbers are not taken for ours, nor ours for theirs; steps are each one's own."""
    rows = [
        {"step": 10, key: 588.0, "lm loss": 3.0},
        {"step": 11, key: 590.0, "bridge/step": 10, "bridge/throughput/tflops/device": 380.0},
    ]
    run = RecordedRun("offline W&B run", facts={"bridge/convention": "exact"})
    run.take(rows)
    tell_apart(run)
    assert run.rows == [
        {"step": 10, "host/tflops/device": 588.0, "lm loss": 3.0, "throughput/tflops/device": 380.0},
        {"step": 11, "host/tflops/device": 590.0},
    ]
    assert run.facts["convention"] == "exact"


def test_the_page_shows_both(tmp_path):
    rows = [{"step": step, "throughput/tflops/device": 380.0} for step in (10, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.log").write_text(LINES)
    assert main(["report", str(tmp_path), "--beside", str(tmp_path / "job.log")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "as Megatron prints it" in page
    assert "401.2" in page
    assert open_run(tmp_path).rows == rows  # the run itself stays as it is
