"""The real Lightning Trainer around a small Llama: loggers and checkpoints hold what was trained on."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

lightning = pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")

import documented  # noqa: E402
import tiny_llama  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.integrations.lightning_trainer import ThroughputLightningCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_measurement")

STEPS, ACCUMULATED, ROWS = 5, 3, 2


class Module(lightning.LightningModule):
    """A language model; it writes down what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama.model()
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        if isinstance(batch, tuple):
            batch = batch[0]
        self.seen.append(tiny_llama.lengths(batch))
        return self.model(**batch).loss

    def validation_step(self, batch: Any, number: int) -> None:
        self.log("held_out", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(count: int, *, wrap: bool = False) -> DataLoader:
    collate = (lambda rows: (tiny_llama.collate(rows), "a name")) if wrap else tiny_llama.collate
    return DataLoader(tiny_llama.texts(count), batch_size=ROWS, collate_fn=collate)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    defaults = {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "accumulate_grad_batches": ACCUMULATED,
        "log_every_n_steps": 2,
        "default_root_dir": folder,
        "logger": CSVLogger(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return {**defaults, **more}


def flops(batches: list[list[int]]) -> int:
    """Length by length."""
    plan = compile_plan(from_huggingface(tiny_llama.model().config), "exact")
    return sum(plan.flops([length]) for batch in batches for length in batch)


def logged(trainer: Any) -> dict[int, int]:
    """Total by step, as the logger's file has it."""
    rows = csv.DictReader(Path(trainer.logger.log_dir, "metrics.csv").read_text().splitlines())
    return {int(row["step"]): int(row["throughput/total_flops"]) for row in rows if row["throughput/total_flops"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The documented lines, with validation in the middle and before the start."""
    folder = tmp_path_factory.mktemp("lightning")
    names = {
        "Trainer": lightning.Trainer,
        "module": Module(),
        "options": options(folder, val_check_interval=6),
        "dataloader": loader(40),
        "held_out": loader(4),
    }
    names = documented.run("Lightning", names)
    names["trainer"].save_checkpoint(folder / "model.ckpt")
    return {**names, "folder": folder}


def test_rows_reach_the_loggers_at_optimizer_steps(trained):
    seen = trained["module"].seen
    assert len(seen) == STEPS * ACCUMULATED
    expected = {step: flops(seen[: step * ACCUMULATED]) for step in (2, 4, 5)}
    assert logged(trained["trainer"]) == expected
    latest = trained["throughput"].throughput.latest
    assert latest["throughput/total_flops"] == expected[5]
    assert "throughput/data_wait_fraction" not in latest


def test_a_wandb_logger_has_them_under_a_name_of_ours(tmp_path, monkeypatch):
    """A real run, offline, read back: the module's key of the same name stays the module's."""
    wandb = pytest.importorskip("wandb")
    wandb.finish()  # a disabled run of an earlier test would be taken up: teardown() leaves it
    wandb.teardown()
    from lightning.pytorch.loggers import WandbLogger

    from bridge.report.host_log import tell_apart
    from bridge.report.run_file import read_run

    class Named(Module):
        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            self.log("throughput/tflops/device", 588.0)
            return super().training_step(batch, number)

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    module, logger = Named(), WandbLogger(save_dir=tmp_path, project="test")
    throughput = ThroughputLightningCallback(from_huggingface(module.model.config), convention="exact")
    lightning.Trainer(callbacks=[throughput], **options(tmp_path, max_steps=2, logger=logger)).fit(module, loader(12))
    file = Path(logger.experiment.settings.sync_file)
    logger.experiment.finish()
    wandb.teardown()  # finish() returns before an offline run's file is whole
    run = read_run(file)
    ours = [row for row in run.rows if "bridge/step" in row]
    assert [(row["bridge/step"], row["bridge/throughput/total_flops"]) for row in ours] == [(2, flops(module.seen))]
    assert {row["throughput/tflops/device"] for row in run.rows if "throughput/tflops/device" in row} == {588.0}
    tell_apart(run)
    assert [row["throughput/total_flops"] for row in run.rows if "throughput/total_flops" in row] == [flops(module.seen)]


def test_totals_go_on_after_a_restart(trained, tmp_path):
    saved = torch.load(trained["folder"] / "model.ckpt", weights_only=True)["callbacks"]["ThroughputLightningCallback"]
    assert saved["total_flops"] == flops(trained["module"].seen)
    throughput = ThroughputLightningCallback(from_huggingface(trained["module"].model.config), convention="exact", log_interval=1)
    trainer = lightning.Trainer(callbacks=[throughput], **options(tmp_path, max_steps=STEPS + 2))
    module = Module()
    trainer.fit(module, loader(60), ckpt_path=trained["folder"] / "model.ckpt")
    done = [flops(trained["module"].seen + module.seen[:count]) for count in (3, 6)]
    assert logged(trainer) == {6: done[0], 7: done[1]}


def test_batches_that_are_no_mappings(tmp_path):
    module = Module()
    config = from_huggingface(module.model.config)
    throughput = ThroughputLightningCallback(config, read=lambda batch: batch[0], convention="exact")
    trainer = lightning.Trainer(callbacks=[throughput], **options(tmp_path, max_steps=1, logger=False))
    trainer.fit(module, loader(6, wrap=True))
    assert throughput.throughput.latest["throughput/total_flops"] == flops(module.seen)


def test_a_training_after_one_that_broke_off_leaves_the_model_as_it_was(tmp_path):
    class Breaks(lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broke off")

    module = Module()
    throughput = ThroughputLightningCallback(from_huggingface(module.model.config), convention="exact")
    with pytest.raises(RuntimeError, match="broke off"):
        lightning.Trainer(callbacks=[throughput, Breaks()], **options(tmp_path, logger=False)).fit(module, loader(6))
    assert not module._forward_pre_hooks
    module.seen.clear()
    lightning.Trainer(callbacks=[throughput], **options(tmp_path, max_steps=1, logger=False)).fit(module, loader(6))
    assert throughput.throughput.latest["throughput/total_flops"] == flops(module.seen)
    assert not module._forward_pre_hooks
    assert not module._forward_hooks
