"""Full disks, damaged checkpoints, wrong input, killed ranks: one clear message, the right code, nothing lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counted import totals
from launch import launch, torchrun

from bridge.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from bridge.training.loop import train

pytestmark = pytest.mark.slow

Scenario = Callable[[str, int], dict[str, Any]]


@pytest.mark.all
@pytest.mark.parametrize("case", ["first", "last", "weights"])
def test_a_full_disk_ends_all_ranks_and_keeps_what_was_saved(scenario: Scenario, case: str) -> None:
    result = scenario("full_disks", 2)[case]
    assert [code for code, _ in result["outcomes"]] == [1, 1]
    (said,) = [line for line in result["outcomes"][0][1].splitlines() if "error" in line]
    assert said.startswith("bridge: error: checkpoint.save=")
    assert "File too large" in said or "disk may be full" in said
    assert "Traceback" not in result["outcomes"][0][1]
    assert result["outcomes"][1][1] == ""
    assert result["names"] == ["latest", "step_0000002"]
    assert result["again"]["code"] == 0
    assert sorted(result["again"]["rows"]) == ["3", "4"]


@pytest.mark.all
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("truncated", "step_0000004 is damaged (__1_0.distcp has "),
        ("flipped", "step_0000004 is damaged (__0_0.distcp has changed since it was saved)"),
        ("missing", "step_0000004 is damaged (common.pt: No such file"),
        ("state", "step_0000004 is damaged (state.json "),
        ("unfinished", "`latest` names 'step_0000004', which is not there"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(scenario: Scenario, case: str, message: str) -> None:
    result = scenario("one_damaged", 2)[case]
    assert result["code"] == 0, result["console"]
    assert message in result["console"]
    assert "resumed from" in result["console"]
    assert sorted(result["rows"]) == ["3", "4", "5"]  # from step 2


@pytest.mark.parametrize("case", ["pointer", "pointer_gone"])
def test_without_its_pointer_the_newest_checkpoint_is_used(scenario: Scenario, case: str) -> None:
    result = scenario("faults", 2)[case]
    assert result["code"] == 0, result["console"]
    assert "the newest checkpoint is used" in result["console"]
    assert sorted(result["rows"]) == ["5"]


def test_without_a_whole_checkpoint_nothing_is_trained(scenario: Scenario) -> None:
    result = scenario("faults", 2)["all"]
    assert result["code"] == 1
    assert result["console"].startswith("bridge: error: checkpoint.load=")
    assert "it holds no complete checkpoint" in result["console"]
    assert result["rows"] == {}


def test_a_checkpoint_of_another_model_is_refused(scenario: Scenario) -> None:
    result = scenario("faults", 2)["other_model"]
    assert result["code"] == 1
    assert "does not fit this model or optimizer" in result["console"]
    assert "Traceback" not in result["console"]


def test_other_text_is_noticed_by_a_quiet_run_too(scenario: Scenario) -> None:
    result = scenario("faults", 2)["other_text"]
    assert result["code"] == 0
    (line,) = result["console"].splitlines()
    assert "the data has changed since the checkpoint (documents)" in line


def test_a_finished_run_has_nothing_to_do(scenario: Scenario) -> None:
    result = scenario("faults", 2)["finished"]
    assert (result["code"], result["rows"]) == (0, {})


# ---- whole jobs -------------------------------------------------------------------------------------------------------

SMALL = ("model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.seq_length=128",
         "train.train_iters=8", "train.global_batch_size=8", "train.micro_batch_size=2", "data.max_documents=500",
         "logger.wandb_project=null", "logger.log_interval=1")  # fmt: skip


def last_row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_killed_job_ends_and_continues_to_the_same_total(tmp_path: Path) -> None:
    options = (*SMALL, f"logger.dir={tmp_path}", f"checkpoint.save={tmp_path}/checkpoints", "checkpoint.save_interval=2",
               f"checkpoint.load={tmp_path}/checkpoints")  # fmt: skip
    kill = (
        "callbacks=[{_target_: bridge.training.callbacks.ThroughputCallback, convention: megatron}, "
        "{_target_: worker.SignalAt, step: 5, number: 9, rank: 1}]"
    )
    start = time.monotonic()
    killed = torchrun(2, "-m", "bridge", "train", "tiny", *options, kill, timeout=120)
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr
    assert time.monotonic() - start < 100
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step_0000004"

    continued = launch(2, "-m", "bridge", "train", "tiny", *options, "train.train_iters=8")
    assert continued.returncode == 0, continued.stderr
    assert "4 steps, 32 samples" in continued.stdout
    assert last_row(tmp_path)["step"] == 8
    assert last_row(tmp_path)["throughput/total_flops"] == totals(SMALL, 8)["throughput/total_flops"]


def test_wrong_input_is_one_message_on_one_rank_and_no_rank_hangs(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    start = time.monotonic()
    result = torchrun(2, "-m", "bridge", "train", "tiny", *SMALL, f"data.path={tmp_path}/text", timeout=60)
    assert time.monotonic() - start < 40
    assert result.returncode != 0
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("bridge: ")]
    assert said.startswith(f"bridge: error: data.path='{tmp_path}/text' holds no files.")
    assert "exitcode  : 2" in result.stderr  # in torchrun's summary
    assert not (tmp_path / "runs").exists()


# ---- wrong input, before megatron-core or another rank is asked -----------------------------------------------------


def small(tmp_path: Path, **data: Any) -> Config:
    cfg = Config(
        model=ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=257, seq_length=32),
        train=TrainConfig(global_batch_size=4),
        data=DataConfig(**data),
    )
    cfg.logger.dir = str(tmp_path / "run")
    return cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg, here: setattr(cfg.data, "path", str(here / "nowhere")), "data.path='{here}/nowhere' does not exist."),
        (lambda cfg, here: setattr(cfg.train, "global_batch_size", 64), "train.global_batch_size=64: one batch needs 64"),
        (lambda cfg, here: setattr(cfg.model, "vocab_size", 200), "model.vocab_size=200 is smaller than the 257 tokens"),
        (lambda cfg, here: setattr(cfg.model, "seq_length", None), "model.seq_length"),
        (lambda cfg, here: setattr(cfg.data, "tokenizer", "x.json"), "data.tokenizer='x.json' is neither `byte` nor a file"),
        (lambda cfg, here: setattr(cfg.checkpoint, "save", "/dev/null/x"), "checkpoint.save='/dev/null/x' cannot be created"),
        (lambda cfg, here: setattr(cfg.checkpoint, "load", str(here / "t.txt")), "checkpoint.load='{here}/t.txt' is a file"),
        (lambda cfg, here: setattr(cfg.parallel, "pipeline_model_parallel_size", 2), "1 ranks cannot hold whole replicas"),
        (lambda cfg, here: cfg.callbacks.append({"_target_": "nothing.Here"}), "callbacks[0]"),
    ],
)
def test_a_configuration_error_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Config, Path], None], message: str
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(f"line number {i}" for i in range(20)))
    cfg = small(tmp_path, path=str(tmp_path / "t.txt"), document_separator="\n")
    change(cfg, tmp_path)
    assert train(cfg) == 2
    error = capsys.readouterr().err
    assert error.startswith("bridge: error: " + message.format(here=tmp_path))
    assert error.count("\n") == 1
