"""One rank of ``test_time.py``: real trainings whose steps are slowed down in a known place.

torchrun --nproc-per-node N time_worker.py {two | four} FOLDER

A delay strikes every other step, so that each run holds its own undisturbed measure: a busy machine makes runs incomparable.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from worker import config

from bridge.metrics import spans
from bridge.metrics.spans import Phase
from bridge.training.callbacks import Callback, CallbackContext
from bridge.training.callbacks.throughput import ROWS
from bridge.training.engine.initialize import prepare_libraries
from bridge.training.loop import train

#: Long beside what a step takes otherwise: where ranks share cores, one that sleeps lets the others compute faster.
DELAY, MICRO_BATCHES = 0.8, 2
WORK = torch._C._distributed_c10d.Work


class Delays(Callback):
    """Slows steps down, and keeps the rows of the run. Comes before the callback that measures."""

    delaying = False
    slept: dict[int, float] = {}
    """Seconds by step, on this rank."""
    step = 1

    def __init__(self, where: str = "", rank: int | None = None, seconds: Any = DELAY) -> None:
        self.where, self.rank = where, rank
        self.seconds = seconds
        self.here = False
        self.undo: list[Callable[[], None]] = []

    def sleep(self, of: str) -> None:
        if Delays.delaying and self.here and of == self.where:
            Delays.take(self.seconds)

    @staticmethod
    def take(seconds: float) -> None:
        """Sleep, and keep how long that really was."""
        begin = time.perf_counter()
        time.sleep(seconds)
        Delays.slept[Delays.step] = Delays.slept.get(Delays.step, 0.0) + time.perf_counter() - begin

    def observe(self, data: Any) -> Any:
        return [self.slow(one) for one in data] if isinstance(data, list) else self.slow(data)

    def slow(self, data: Any) -> Any:
        for batch in data:
            self.sleep("data")
            yield batch

    def on_train_start(self, context: CallbackContext) -> None:
        rank = torch.distributed.get_rank()
        self.here = self.rank is None or rank == self.rank
        Delays.delaying, Delays.slept, Delays.step = False, {}, 1
        for chunk in context.model:
            self.undo.append(chunk.register_forward_pre_hook(lambda *_: self.sleep("forward")).remove)
            finish = chunk.finish_grad_sync
            chunk.finish_grad_sync = lambda *given, finish=finish, **options: self.inside_wait(partial(finish, *given, **options))
        step = context.optimizer.step
        context.optimizer.step = lambda: (self.sleep("optimizer"), step())[1]
        if self.where == "stages":
            self.as_stages(context, rank)

    def inside_wait(self, finish: Callable[[], None]) -> None:
        """The gradients' all-reduce takes longer on the wire."""
        if self.where == "gradients":
            SlowWait.seconds = self.seconds * Delays.delaying
        finish()
        SlowWait.seconds = 0.0

    def as_stages(self, context: CallbackContext, rank: int) -> None:
        """Every pass of a stage takes as long as it is told; backward passes twice as long."""
        seconds = self.seconds[rank]

        def backward(gradient: torch.Tensor) -> None:
            self.take(2 * seconds)

        def forward(module: Any, args: Any, output: torch.Tensor) -> None:
            self.take(seconds)
            output.register_hook(backward)

        for chunk in context.model:
            self.undo.append(chunk.register_forward_hook(forward).remove)

    def on_train_step_end(self, context: CallbackContext) -> None:
        Delays.step = context.state.step + 1
        Delays.delaying = Delays.step % 2 == 1

    def on_train_end(self, context: CallbackContext) -> None:
        while self.undo:
            self.undo.pop()()


class Kept(Callback):
    """Keeps the rows of a run, and what this rank itself saw. Comes after the callback that measures."""

    rows: dict[int, dict[str, Any]] = {}
    left: Any = None

    def on_train_start(self, context: CallbackContext) -> None:
        Kept.rows = {}

    def on_train_step_end(self, context: CallbackContext) -> None:
        with torch.profiler.record_function("step ends"):
            Kept.rows |= context.user_state.get(ROWS, {})

    def on_train_end(self, context: CallbackContext) -> None:
        Kept.rows |= context.user_state.get(ROWS, {})
        Kept.left = spans.listener


class SlowWait:
    """Below bridge's own: what it measures is real."""

    seconds = 0.0
    real = WORK.wait

    @staticmethod
    def wait(work: Any, *arguments: Any, **options: Any) -> Any:
        with torch.profiler.record_function("waited"):
            if SlowWait.seconds:
                Delays.take(SlowWait.seconds)
            return SlowWait.real(work, *arguments, **options)


def run(folder: Path, name: str, *overrides: str, **delay: Any) -> list[dict[str, Any]]:
    """The rows of a training."""
    cfg = config(folder / name, "dense", "fixed", *overrides)
    cfg.callbacks = [
        {"_target_": "time_worker.Delays", **delay},
        {"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "exact", "peak_flops": 1e9},
        {"_target_": "time_worker.Kept"},
    ]
    code = train(cfg)
    assert code == 0, name
    assert Kept.left is None, "still listening"
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, Delays.slept)
    return [Kept.rows[step] | {"slept": [slept.get(step, 0.0) for slept in ranks]} for step in sorted(Kept.rows)]


def two(folder: Path) -> dict[str, Any]:
    steps = ("train.train_iters=11", f"train.global_batch_size={2 * MICRO_BATCHES}", "model.num_layers=1")
    cases = {
        "data": {"where": "data", "rank": 1},
        "forward": {"where": "forward", "rank": 1},
        "optimizer": {"where": "optimizer"},
        "gradients": {"where": "gradients", "seconds": MICRO_BATCHES * DELAY},
    }
    results: dict[str, Any] = {name: run(folder, name, *steps, **delay) for name, delay in cases.items()}
    short = ("train.train_iters=5", "train.global_batch_size=4")
    results["tp2"] = run(folder, "tp2", *short, "parallel.tensor_model_parallel_size=2")
    results["overlap"] = run(
        folder,
        "overlap",
        *short,
        "optimizer.use_distributed_optimizer=true",
        "optimizer.overlap_grad_reduce=true",
        "optimizer.overlap_param_gather=true",
    )
    results["witness"] = witness(folder)
    return results


def witness(folder: Path) -> dict[str, Any]:
    """The same steps as torch.profiler sees them."""
    steps: list[Any] = []
    read = spans.Spans._read

    def kept(self: Any, *arguments: Any) -> Any:
        steps.append(read(self, *arguments))
        return steps[-1]

    spans.Spans._read = kept  # type: ignore[method-assign]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(folder, "witness", "train.train_iters=5", "train.global_batch_size=4", where="gradients", rank=1, seconds=0.05)
    spans.Spans._read = read  # type: ignore[method-assign]
    events = profile.events()
    ends = sorted(event.time_range.start for event in events if event.name == "step ends")
    within = [event for event in events if ends[0] < event.time_range.start < ends[-1]]
    gloo = [event for event in within if event.name.startswith("gloo:")]
    waited = [event for event in within if event.name == "waited"]
    return {
        "waits": [sum(step.seconds[phase] for phase in Phase if phase.value.endswith("_wait")) for step in steps],
        "waited": sum(event.time_range.elapsed_us() for event in waited) / 1e6,
        "collectives": len(gloo),
    }


def four(folder: Path) -> dict[str, Any]:
    pipeline = ("parallel.pipeline_model_parallel_size=4", "train.train_iters=4")
    cases = {
        "even, 4": (4, [0.1] * 4, ()),
        "even, 16": (16, [0.1] * 4, ()),
        "third": (4, [0.06, 0.06, 0.12, 0.06], ()),
        "interleaved": (
            8,
            [0.05] * 4,
            ("parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=8"),
        ),
    }
    results = {
        name: run(folder, name, *pipeline, f"train.global_batch_size={m}", *more, where="stages", seconds=seconds)
        for name, (m, seconds, more) in cases.items()
    }
    results["dp2pp2"] = run(
        folder, "dp2pp2", "parallel.pipeline_model_parallel_size=2", "model.num_layers=2",
        "train.train_iters=11", "train.global_batch_size=4",
        where="forward", rank=1, seconds=DELAY,
    )  # fmt: skip
    return results


if __name__ == "__main__":
    scenario, into = sys.argv[1], Path(sys.argv[2])
    sys.modules.setdefault("time_worker", sys.modules["__main__"])  # the callbacks above, by the name in `_target_`
    WORK.wait = SlowWait.wait
    prepare_libraries()
    torch.distributed.init_process_group("gloo")
    found = globals()[scenario](into)
    if torch.distributed.get_rank() == 0:
        (into / f"{scenario}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
