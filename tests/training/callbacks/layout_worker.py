"""One rank of ``test_layouts.py``: runs every case of a file in megatron-core's process groups, writes what it saw.

torchrun --nproc-per-node 4 layout_worker.py CASES.json FOLDER
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
from megatron.core import parallel_state
from unmeasured import tell_peak

from bridge.training.callbacks import ThroughputCallback
from bridge.training.engine.initialize import leave_groups


class Broken:
    """A batch that breaks whoever looks at it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("broken batch")


HUGE = {"tokens": type("Shape", (), {"ndim": 2, "shape": (1, 2**41), "numel": lambda self: 2**41})(), "attention_mask": None}


def batches(case: dict[str, Any], replica: int, first_step: int) -> Any:
    """The micro-batches of a replica, from a step on; the same on every rank of it."""
    lengths = driver.replica_lengths(case, replica)[first_step * case["micro_batches"] :]
    form = getattr(driver, case["form"])
    for number, one in enumerate(lengths):
        fault = case.get("fault", {})
        if fault.get("replica") == replica and number >= fault["from"]:
            yield {"broken": Broken(), "huge": HUGE, "mute": {"labels": torch.zeros(1)}}[fault["kind"]]
        else:
            yield form(one) if one else None


def run(case: dict[str, Any], restored: Any) -> dict[str, Any]:
    """One case on this rank."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=case.get("tp", 1),
        pipeline_model_parallel_size=case.get("pp", 1),
        virtual_pipeline_model_parallel_size=case.get("vpp"),
        context_parallel_size=case.get("cp", 1),
        expert_model_parallel_size=case.get("ep", 1),
        create_gloo_process_groups=False,
    )
    replica = parallel_state.get_data_parallel_rank()
    first = restored["step"] if restored else 0
    callback = ThroughputCallback(case["convention"], log_interval=case["log_interval"], detail=0)
    cfg = driver.config(**({"num_moe_experts": 4, "moe_ffn_hidden_size": 32} if case.get("ep") else {}))
    chunks = [batches(case, replica, first) for _ in range(case.get("vpp") or 1)]
    loop = driver.Loop([callback], driver.state(cfg, step=first), chunks if case.get("vpp") else chunks[0])
    if restored:
        loop.manager.load_state_dict(restored["callbacks"])

    saved = None
    with driver.AllReduces() as sums:
        loop.start()
        for step in range(first + 1, case["steps"] + 1):
            if case.get("breaks") and dist.get_rank() == 1 and step == 5:
                break_down(callback, case["breaks"])
            loop.steps(1, case["micro_batches"], skipped=step in case.get("skipped", ()))
            if step in case.get("evaluate", ()):
                loop.evaluate(0)
            if step in case.get("save", ()):
                saved = {"step": step, "callbacks": loop.save()}
        loop.end()
    leave_groups()
    return {"latest": callback.latest, "state": callback.state_dict(), "saved": saved, "collectives": sums.seen}


def break_down(callback: ThroughputCallback, part: str) -> None:
    """From now on one part of the callback raises, on this rank alone."""

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError(f"broken {part}")

    meter = callback._meter
    if part == "clock":
        meter._timer.clock = type("Clock", (), {"mark": broken, "reached": broken, "seconds": broken})()
    elif part == "plan":
        meter.plan.evaluate = broken
    elif part == "report":
        meter._intervals.work_of = broken
    elif part == "publication":
        callback._metrics = broken
    elif part == "counting":
        for batch in meter._counted.values():
            batch.tokens = batch.drain = broken


def main(cases_file: str, folder: str) -> None:
    tell_peak()
    logging.getLogger("bridge").addHandler(handler := Collect())
    dist.init_process_group("gloo")
    results = []
    saved: dict[str, Any] = {}
    for case in json.loads(Path(cases_file).read_text()):
        handler.messages.clear()
        result = run(case, saved.get(case.get("resumes")))
        saved[case["name"]] = result.pop("saved")
        results.append({**result, "warnings": list(handler.messages)})
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


class Collect(logging.Handler):
    """Remembers warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    main(*sys.argv[1:])
