"""Workers that die are started again by torchrun: one W&B run, one file of metrics, the totals of an unbroken run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from counted import totals
from launch import torchrun

from bridge.training.job.restart import known_run_id, remember_run_id

pytestmark = pytest.mark.slow

STEPS = 8
SMALL = ("model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.seq_length=128",
         f"train.train_iters={STEPS}", "train.global_batch_size=8", "train.micro_batch_size=2", "data.max_documents=500",
         "logger.log_interval=1", "logger.wandb_mode=offline", "checkpoint.save_interval=4")  # fmt: skip
THROUGHPUT = "{_target_: bridge.training.callbacks.ThroughputCallback, convention: megatron}"


@pytest.mark.all
def test_killed_workers_are_started_again_and_the_run_goes_on(tmp_path: Path) -> None:
    folders = (f"logger.dir={tmp_path}/run", f"checkpoint.save={tmp_path}/saved", f"checkpoint.load={tmp_path}/saved")
    accidents = f"callbacks=[{THROUGHPUT}, {{_target_: accidents.Killed, steps: [6]}}]"
    result = torchrun(2, "--max-restarts=1", "-m", "bridge", "train", "tiny", *SMALL, *folders, accidents, timeout=200)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("starting a new run") == 1
    assert result.stdout.count(f"resumed from {tmp_path}/saved/step_0000004: 4 steps, 32 samples") == 1

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    expected = totals(SMALL, STEPS)
    assert {key: rows[-1][key] for key in expected} == expected

    attempts = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(attempts) == 2
    assert len({attempt.name.rpartition("-")[2] for attempt in attempts}) == 1


def test_before_a_checkpoint_the_same_torchrun_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert known_run_id(tmp_path) is None
    remember_run_id(tmp_path, "abcd1234")
    assert known_run_id(tmp_path) == "abcd1234"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    assert known_run_id(tmp_path) is None
    monkeypatch.setenv("WANDB_RUN_ID", "slurm-7")
    assert known_run_id(tmp_path) == "slurm-7"


def test_without_torchrun_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    remember_run_id(tmp_path, "abcd1234")
    assert not list(tmp_path.iterdir())
    (tmp_path / "restart.json").write_text('{"launcher": null, "run_id": "abcd1234"}')
    assert known_run_id(tmp_path) is None
