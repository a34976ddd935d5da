"""One rank of ``test_stragglers.py``: a model that computes for every token, gradients summed over the ranks.

torchrun --nproc-per-node 2 straggler_worker.py FOLDER
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import callback_driver as driver
import torch
import torch.distributed as dist
from unmeasured import tell_peak

from bridge.metrics import stragglers, vector
from bridge.training.callbacks import ThroughputCallback

WIDTH, LENGTH, STEPS = 256, 64, 6


class Layers(torch.nn.Module):
    """Matmuls over tokens, some of them for nothing."""

    def __init__(self, repeats: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.repeats = repeats

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            for _ in range(self.repeats):
                with torch.no_grad():
                    layer(hidden)
            hidden = layer(hidden)
        return hidden


class Training(driver.Loop):
    """A loop whose steps compute, and wait for the other rank."""

    def __init__(self, callback: ThroughputCallback, model: Layers, data: Any) -> None:
        super().__init__([callback], driver.state(driver.config(STEPS)), data)
        self.model = model

    def fire(self, event: str, **fields: Any) -> None:
        super().fire(event, model=[self.model], **fields)

    def compute(self, batch: dict[str, torch.Tensor]) -> None:
        self.model(torch.ones(batch["tokens"].numel(), WIDTH)).sum().backward()

    def take(self) -> None:
        self.compute(next(self.data))

    def steps(self, count: int, micro_batches: int = 2, *, skipped: bool = False) -> Training:
        for _ in range(count):
            super().steps(1, micro_batches, skipped=skipped)
            for weight in self.model.parameters():
                dist.all_reduce(weight.grad)
        return self


def batches(sequences: int) -> Any:
    while True:
        yield driver.fixed([LENGTH] * sequences)


def run(*, sequences: int, repeats: int, lingers: bool = False, listed: int = 64) -> dict[str, Any]:
    torch.manual_seed(0)
    # Jobs of more ranks than are listed in the vector find the slowest with a maximum.
    vector.MAX_ENTRIES = stragglers.MAX_ENTRIES = listed
    callback = ThroughputCallback("exact", compute_time=1, detail=0)
    loop = Training(callback, Layers(repeats), batches(sequences)).start().steps(3)
    loop.fire("on_eval_start")
    for _ in range(20 * lingers):  # ten times the work of a step, and none of it training
        loop.compute(driver.fixed([LENGTH] * sequences))
    loop.fire("on_eval_end")
    loop.save()
    for _ in range(20 * lingers):
        loop.compute(driver.fixed([LENGTH] * sequences))
    loop.steps(STEPS - 3).end()
    return callback.latest


def main(folder: str) -> None:
    tell_peak()
    dist.init_process_group("gloo")
    told: list[str] = []
    handler = logging.Handler()
    # These four layers are not the model that is priced, which is said too.
    handler.addFilter(lambda record: "is not the one that is priced" not in record.getMessage())
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bridge").addHandler(handler)
    second = dist.get_rank() == 1
    cases = {
        "balanced": {"sequences": 8, "repeats": 0},
        "slow": {"sequences": 8, "repeats": 20 if second else 0},
        "data": {"sequences": 64 if second else 8, "repeats": 0},
        "paused": {"sequences": 8, "repeats": 0, "lingers": second},
        "too many to list": {"sequences": 32 if second else 8, "repeats": 20 if second else 0, "listed": 1},
    }
    results = {}
    for name, case in cases.items():
        told.clear()
        results[name] = {"row": run(**case), "told": list(told)}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
