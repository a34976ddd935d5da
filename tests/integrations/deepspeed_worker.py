"""One rank of ``test_deepspeed.py``: ZeRO 1 to 3 on the CPU, a checkpoint in the middle of the last; a pipeline, refused.

torchrun --nproc-per-node 2 deepspeed_worker.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import documented
import tiny_llama
import torch
import torch.distributed as dist

from bridge.metrics import peak

ROWS, ACCUMULATED, STEPS = 2, 2, 4


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    peak.measure_matmul = lambda dtype: (1e15, "measured: in a test")
    deepspeed.init_distributed("gloo")
    results: dict[str, Any] = {f"ZeRO {stage}": zero(stage, folder / f"{stage}") for stage in (1, 2, 3)}
    results["pipeline"] = pipeline()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def zero(stage: int, folder: Path) -> dict[str, Any]:
    texts = tiny_llama.texts(ROWS * ACCUMULATED * STEPS, seed=dist.get_rank())
    batches = [tiny_llama.collate(texts[first : first + ROWS]) for first in range(0, len(texts), ROWS)]
    middle = len(batches) // 2
    job(stage, batches[:middle], folder, saves=True)
    throughput = job(stage, batches[middle:], folder, saves=False)
    return {"seen": [length for batch in batches for length in tiny_llama.lengths(batch)], "latest": throughput.latest}


def job(stage: int, batches: list[Any], folder: Path, *, saves: bool) -> Any:
    model = tiny_llama.model()
    options = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": ACCUMULATED,
        "steps_per_print": 2,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    names = documented.run("DeepSpeed", {"deepspeed": deepspeed, "model": model, "options": options})
    engine, throughput = names["engine"], names["throughput"]
    if not saves:
        engine.load_checkpoint(str(folder))
    for batch in batches:
        engine.backward(engine(**batch).loss)
        engine.step()
        with torch.no_grad():
            engine(**batch)  # an evaluation
    if saves:
        engine.save_checkpoint(str(folder))
    throughput.end()
    return throughput


def pipeline() -> str:
    from deepspeed.pipe import PipelineModule

    from bridge.integrations import deepspeed_engine

    layers = [torch.nn.Linear(4, 4) for _ in range(2)]
    net = PipelineModule(layers=layers, num_stages=2, loss_fn=torch.nn.MSELoss())
    options = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
               "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}}  # fmt: skip
    engine, *_ = deepspeed.initialize(model=net, model_parameters=net.parameters(), config=options)
    return deepspeed_engine._problem(engine) or ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
