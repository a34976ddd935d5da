"""One rank of ``test_torchtitan.py``: torchtitan's Trainer around a tiny Llama on the CPU; writes what was fed and reported.

torchrun --nproc-per-node 2 torchtitan_worker.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import documented
import titan_on_cpu  # noqa: F401  # before anything else of torchtitan
import torch
import torch.distributed as dist
from titan_fed import ACCUMULATED, MODEL, ROWS, documents
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from unmeasured import tell_peak


class Rows(BaseDataLoader):
    """Packed rows of documents, other ones for every replica."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        batches: int = 1000

    def __init__(self, config: Config, *, dp_rank: int, **_: Any) -> None:
        self.replica, self.taken, self.batches = dp_rank, 0, config.batches

    def __iter__(self) -> Iterator[Any]:
        while self.taken < self.batches:
            rows = documents(self.replica, self.taken)
            self.taken += 1
            positions = torch.tensor([[place for length in row for place in range(length)] for row in rows])
            tokens = torch.randint(MODEL["vocab_size"], positions.shape)
            yield {"input": tokens, "positions": positions}, tokens.roll(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


class NoWords(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()
        self.eos_id = 0

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return []

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def get_vocab_size(self) -> int:
        return MODEL["vocab_size"]


def job(folder: Path, steps: int, *, batches: int = 1000, **layout: int) -> dict[str, Any]:
    """As its ``train.py`` runs one, saved every second step and gone on with where there is a checkpoint."""
    config = llama3_debugmodel()
    config.dump_folder = str(folder)
    config.dataloader, config.tokenizer = Rows.Config(batches=batches), NoWords.Config()
    replicas = 1 if layout else dist.get_world_size() if dist.is_initialized() else int(os.environ["WORLD_SIZE"])
    config.training = replace(
        config.training,
        local_batch_size=ROWS,
        global_batch_size=ROWS * ACCUMULATED * replicas,
        seq_len=MODEL["seq_length"],
        steps=steps,
        disable_cuda_graphs=True,
        mixed_precision_param="float32",
    )
    config.parallelism = replace(config.parallelism, spmd_backend="partial_dtensor", **layout)
    config.metrics = replace(config.metrics, log_freq=2, enable_tensorboard=True)
    config.validator = replace(config.validator, enable=False)
    config.checkpoint = replace(config.checkpoint, enable=True, interval=2, async_mode="disabled")
    trainer = config.build()
    for module in trainer.model_parts[0].modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    names = {"trainer": trainer, "model": MODEL}
    throughput = documented.run("torchtitan", names)["throughput"]
    return {"latest": throughput.latest, "step": trainer.step}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tell_peak()
    results = {
        "sharded": job(folder / "sharded", 3),
        "goes on": job(folder / "sharded", 5),
        "runs out": job(folder / "runs out", 9, batches=3 * ACCUMULATED + 1),
        "tensor parallel": job(folder / "tensor", 3, tensor_parallel_degree=2),
    }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
