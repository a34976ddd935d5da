"""On a GPU: the MFU of a real model in bf16, and that the callback makes nothing wait.

    python -m benchmarks gpu

1. ``bridge train`` of Llama 3.2 1B for some steps: MFU against the table of peaks, as reported.
2. Whole steps of the same model (forward, backward, update) with the callback on, under
   ``torch.cuda.set_sync_debug_mode("error")``: any device sync that torch knows of is an exception.
3. A profiler trace of such steps with and without the callback: calls of the CUDA runtime that block the host.

The trainer's own optimizer reads its gradient norm back, so 2 and 3 update the weights by hand, which never waits.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Row, Unavailable
from bridge.config import load_recipe
from bridge.config.schema import Config
from bridge.training.callbacks import CallbackContext, CallbackManager, ThroughputCallback

MODEL = "llama3.2-1b"
SEQ_LENGTH = 4096
TRACES = Path("build")
STEPS = 16
PAIRS = 10
#: Calls of the CUDA runtime and driver that make the host wait.
BLOCKING = {
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
}


def recipe(*overrides: str) -> Config:
    """The model, fixed-length batches, bf16."""
    return load_recipe(MODEL, [f"model.seq_length={SEQ_LENGTH}", "model.bf16=true", "data.batching=fixed", *overrides])


# ---- 1. MFU ---------------------------------------------------------------------------------------------------------


def trained() -> dict[str, Any]:
    """The last row of a short training."""
    from bridge.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        cfg = recipe(
            "train.train_iters=30",
            "train.global_batch_size=4",
            "train.micro_batch_size=1",
            "logger.log_interval=10",
            "logger.wandb_project=null",
            f"logger.dir={folder}",
            f"logger.metrics_file={folder}/metrics.jsonl",
        )
        cfg.callbacks = [{"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "megatron"}]
        with contextlib.redirect_stdout(io.StringIO()) as console:
            if train(cfg):
                raise RuntimeError(console.getvalue())
        return json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])


# ---- 2 and 3. Steps that wait for nothing -----------------------------------------------------------------------------


class Steps:
    """Whole training steps without a wait, with the callback's events and ``observe`` or without."""

    def __init__(self) -> None:
        from bridge.training.engine.initialize import Launch, initialize, prepare_libraries

        prepare_libraries()
        from bridge.training.engine.model import build_model
        from bridge.training.state import TrainState

        cfg = recipe()
        groups, self.device = initialize(cfg, Launch.from_environment())
        (self.chunk,) = build_model(cfg, self.device)
        self.weights = [weight for weight in self.chunk.parameters() if weight.requires_grad]
        state = TrainState(cfg=cfg, groups=groups, device=self.device, number_format="bf16")
        self.manager = CallbackManager([ThroughputCallback("megatron", log_interval=2)])
        self.context = CallbackContext(state=state, model=[self.chunk], user_state=self.manager.user_state, skipped_iter=False)
        self.position_ids = torch.arange(SEQ_LENGTH, device=self.device)[None]
        batches = itertools.cycle([self._batch() for _ in range(4)])
        self.data = {True: self.manager.observe(batches), False: batches}
        self.manager.fire("on_train_start", self.context)

    @staticmethod
    def _batch() -> dict[str, Any]:
        tokens = torch.randint(0, 256, (1, SEQ_LENGTH + 1))
        return {"tokens": tokens[:, :-1].contiguous().pin_memory(), "labels": tokens[:, 1:].contiguous().pin_memory()}

    def run(self, count: int, *, callback: bool) -> None:
        for _ in range(count):
            if callback:
                self.manager.fire("on_train_step_start", self.context)
            batch = next(self.data[callback])
            tokens, labels = (batch[key].to(self.device, non_blocking=True) for key in ("tokens", "labels"))
            self.chunk.zero_grad_buffer()
            self.chunk(tokens, self.position_ids, None, labels=labels).mean().backward()
            with torch.no_grad():
                for weight in self.weights:
                    weight.add_(weight.main_grad, alpha=-1e-4)
            if callback:
                self.manager.fire("on_train_step_end", self.context)

    def seconds(self, count: int, *, callback: bool) -> float:
        """Per step; waits for the device before and after."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.run(count, callback=callback)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    def blocking_calls(self, count: int, *, callback: bool) -> int:
        """Calls that block the host while steps run; the trace is kept."""
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            self.run(count, callback=callback)
        TRACES.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(TRACES / f"steps_{'with' if callback else 'without'}_callback.json"))
        return sum(event.count for event in profile.key_averages() if event.key in BLOCKING)

    def end(self) -> bool:
        """Whether the callback counted all along."""
        from bridge.training.engine.initialize import shut_down

        self.manager.fire("on_checkpoint_save", self.context)  # sums what was not yet summed
        complete = self.manager.state_dict()["ThroughputCallback"]["complete"]
        self.manager.fire("on_train_end", self.context)
        shut_down(leave=True)
        return complete


@contextlib.contextmanager
def syncs_are_errors() -> Iterator[None]:
    """Every device sync that torch knows of raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def without_waiting(call: Callable[[], None]) -> int:
    """1 if the call made torch wait for the device, else 0."""
    try:
        with syncs_are_errors():
            call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return 1
    return 0


def rows() -> Iterator[Row]:
    if not torch.cuda.is_available():
        raise Unavailable("needs CUDA, and torch sees no GPU here")
    row = trained()
    gc.collect()
    torch.cuda.empty_cache()
    name = torch.cuda.get_device_name()
    yield Row(f"MFU, {MODEL}, bf16", row.get("throughput/mfu", float("nan")), "fraction", None, name)
    yield Row(f"speed, {MODEL}, bf16", row["throughput/tflops/device"], "TFLOP/s", None, name)
    yield Row(f"step time, {MODEL}", 1e3 * row["throughput/step_time"], "ms")
    yield Row("throughput/overhead_ms", row["throughput/overhead_ms"], "ms/step")

    steps = Steps()
    for callback in (True, False):
        steps.run(6, callback=callback)  # kernels load, memory is found
    # The step itself must not wait, or the next figure says nothing.
    yield Row("steps that waited, without callback", without_waiting(lambda: steps.run(STEPS, callback=False)), "0 or 1", 1)
    yield Row("steps that waited, with callback", without_waiting(lambda: steps.run(STEPS, callback=True)), "0 or 1", 1)
    calls = {on: steps.blocking_calls(STEPS, callback=on) for on in (False, True)}
    note = f"{calls[False]} without and {calls[True]} with it, in {STEPS} steps and the profiler's end"
    yield Row("blocking calls that the callback adds", calls[True] - calls[False], "calls", 1, note)
    ratios = [steps.seconds(STEPS, callback=True) / steps.seconds(STEPS, callback=False) for _ in range(PAIRS)]
    yield Row("with / without, log_interval 2", statistics.median(ratios), "ratio", None, f"{PAIRS} pairs")
    yield Row("callback failures", int(not steps.end()), "0 or 1", 1, "a sync inside the callback would be one")
