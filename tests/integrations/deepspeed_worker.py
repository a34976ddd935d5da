"""One rank of ``test_deepspeed.py``: every stage of ZeRO, a pipeline and sequence-parallel groups; writes what was reported.

torchrun --nproc-per-node 2 deepspeed_worker.py FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import documented
import tiny_llama
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from unmeasured import tell_peak

from bridge.integrations.deepspeed_engine import add_throughput

ROWS, ACCUMULATED = 2, 2


def settings(folder: Path, stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": ACCUMULATED,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": f"zero{stage}"},
        "steps_per_print": 1000,
    }


def zero(stage: int, folder: Path) -> dict[str, Any]:
    """Five steps in two jobs, the second from the first one's checkpoint; an evaluation between two of them."""
    save = folder / f"checkpoints{stage}"
    seen: list[int] = []
    first = job(stage, folder, seen, steps=3, save=save)
    second = job(stage, folder, seen, steps=2, load=save)
    return {"seen": seen, "first": first, "second": second}


def forgetful(folder: Path) -> dict[str, Any]:
    """Gone on from a checkpoint of an engine that nobody counted."""
    model, save = tiny_llama.model(), folder / "uncounted"
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings(folder, 1))
    engine.global_steps = 3
    engine.save_checkpoint(save)
    seen: list[int] = []
    return {**job(1, folder, seen, steps=2, load=save), "seen": seen}


def job(stage: int, folder: Path, seen: list[int], *, steps: int, save: Any = None, load: Any = None) -> dict[str, Any]:
    model = tiny_llama.model()
    names = {"deepspeed": deepspeed, "model": model, "settings": settings(folder, stage)}
    names = documented.run("DeepSpeed", names)
    engine, throughput = names["engine"], names["throughput"]
    if load is not None:
        engine.load_checkpoint(load)
    done = engine.global_steps
    texts = tiny_llama.texts(40, seed=dist.get_rank())[done * ROWS * ACCUMULATED :]
    for number in range(steps * ACCUMULATED):
        batch = tiny_llama.collate(texts[number * ROWS : (number + 1) * ROWS])
        engine.backward(engine(**batch).loss)
        engine.step()
        seen += tiny_llama.lengths(batch)
    engine.eval()
    with torch.no_grad(), throughput.evaluation():
        engine(**tiny_llama.collate(texts[:ROWS]))
    if save is not None:
        engine.save_checkpoint(save)
    engine.destroy()
    return {"latest": throughput.latest, "verified": throughput.callback.verified.facts}


def pipeline() -> dict[str, Any]:
    from deepspeed.pipe import PipelineModule

    layers = [torch.nn.Linear(8, 8) for _ in range(4)]
    module = PipelineModule(layers, num_stages=2, loss_fn=torch.nn.functional.mse_loss)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=settings(Path("."), 0))
    return refused(engine)


def ulysses() -> dict[str, Any]:
    """Both ranks hold parts of each sequence."""
    parallel_state_sp.initialize_sequence_parallel(sequence_parallel_size=2)
    model = tiny_llama.model()
    parts = {"model": model, "model_parameters": model.parameters(), "mpu": parallel_state_sp}
    engine, *_ = deepspeed.initialize(**parts, config=settings(Path("."), 0))
    return refused(engine)


def refused(engine: Any) -> dict[str, Any]:
    """What is said instead of numbers."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("bridge").addHandler(handler)
    throughput = add_throughput(engine)
    logging.getLogger("bridge").removeHandler(handler)
    return {"said": said, "latest": dict(throughput.latest)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tell_peak()
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # nothing is compiled
    deepspeed.init_distributed("gloo")
    os.chdir(folder)
    results: dict[str, Any] = {f"zero{stage}": zero(stage, folder) for stage in range(4)}
    results["forgetful"] = forgetful(folder)
    results["ulysses"] = ulysses()
    results["pipeline"] = pipeline()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
