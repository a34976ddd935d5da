"""One rank of ``test_two_ranks.py``: every loop once or twice, in one launch; writes what the callback reported.

torchrun --nproc-per-node 2 worker.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from unmeasured import tell_peak

from bridge.training.engine.initialize import prepare_libraries

MEGATRON = {
    "megatron_bridge": ({}, {"pipeline_model_parallel_size": 2}),
}


def trainer(folder: Path) -> dict[str, Any]:
    """Hugging Face's Trainer, data parallel; saved in the middle."""
    import documented
    import tiny_llama
    from transformers import Trainer, TrainingArguments

    seen = []

    class Recorded(Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            seen.append(tiny_llama.lengths(inputs))
            return super().training_step(model, inputs, *rest)

    args = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=5,
        logging_steps=2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    names = {
        "Trainer": Recorded,
        "model": tiny_llama.model(),
        "args": args,
        "dataset": tiny_llama.texts(60),
        "held_out": None,
        "collator": tiny_llama.collate,
    }
    names = documented.run("Hugging Face Trainer", names)
    return {"latest": names["throughput"].throughput.latest, "seen": seen}


def accelerate_loop() -> dict[str, Any]:
    """A loop around accelerate's Accelerator, data parallel, two micro-batches a step."""
    import accelerate
    import documented
    import tiny_llama

    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
    texts = tiny_llama.texts(20, seed=dist.get_rank())
    batches = [tiny_llama.collate(texts[first : first + 2]) for first in range(0, len(texts), 2)]
    model = tiny_llama.model()
    names = {"accelerator": accelerator, "model": model, "loader": None, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    names = documented.run("accelerate", names)
    model, optimizer = names["model"], names["optimizer"]
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.free_memory()
    names["throughput"].end()
    return {"latest": names["throughput"].latest, "seen": [tiny_llama.lengths(batch) for batch in batches]}


def documented_adapter() -> dict[str, Any]:
    """The adapter of docs/extending.md in its loop, data parallel; and again from a checkpoint of the first training."""
    import lap
    import tiny_llama

    texts = tiny_llama.texts(28, seed=dist.get_rank())
    batches = [tiny_llama.collate(texts[first : first + 2]) for first in range(0, len(texts), 2)]
    checkpoint, totals = None, []
    for _ in range(2):
        callback = lap.adapter()(convention="exact")
        trainer = lap.Trainer(tiny_llama.model(), batches, [callback], 7)
        trainer.fit(checkpoint)
        checkpoint = trainer.saved.get(4)
        totals.append(trainer.logger.column("throughput/total_flops"))
    verified = callback.throughput.callback.verified.facts
    return {"totals": totals, "verified": verified, "seen": [tiny_llama.lengths(batch) for batch in batches]}


def lightning_trainer(folder: Path) -> dict[str, Any]:
    """Lightning's Trainer, data parallel, two micro-batches a step."""
    import documented
    import lightning.pytorch as pl
    import tiny_llama
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader

    seen = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_llama.model()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(tiny_llama.lengths(batch))
            return self.model(**batch).loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.model(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = CSVLogger(folder / "lightning", flush_logs_every_n_steps=1)
    options = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp",
        "max_epochs": 1,
        "accumulate_grad_batches": 2,
        "logger": logger,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
    }
    names = {
        "Trainer": pl.Trainer,
        "module": Module(),
        "dataloader": DataLoader(tiny_llama.texts(11), batch_size=1, collate_fn=tiny_llama.collate),
        "held_out": DataLoader(tiny_llama.texts(4, seed=1), batch_size=1, collate_fn=tiny_llama.collate),
        "options": options,
    }
    throughput = documented.run("Lightning", names)["throughput"].throughput
    return {"latest": throughput.latest, "seen": seen}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tell_peak()
    dist.init_process_group("gloo")
    os.chdir(folder)
    results = {"trainer": trainer(folder), "accelerate": accelerate_loop(), "documented": documented_adapter()}
    if find_spec("lightning") is not None:
        results["lightning"] = lightning_trainer(folder)
    prepare_libraries()
    import megatron_bridge_stubs
    import megatron_worker

    for loop, layouts in MEGATRON.items():
        if loop == "megatron_bridge" and megatron_bridge_stubs.root() is None:
            continue
        results[loop] = [getattr(megatron_worker, loop)(**layout) for layout in layouts]
    results["megatron_lm"] = megatron_worker.megatron_lm(folder)
    results["megatron_lm_misread"] = megatron_worker.megatron_lm_misread(folder)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
