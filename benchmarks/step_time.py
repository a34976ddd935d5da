"""Step time with and without the callback, paired in one run of the tiny recipe.

Blocks of steps with the callback switched on (its events and its ``observe``) and off follow each other, in alternating
order; each pair gives one ratio.  Processor time is the process's own and so is hardly disturbed by others.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.rows import Row
from bridge.config import load_recipe
from bridge.training.callbacks import Callback, CallbackContext, ThroughputCallback

PAIRS = 20
BLOCK = 10
"""Steps: one log point at log_interval 10."""
WARM_UP = 10
TARGET_RATIO = 1.005
TARGET_US = 250.0
"""Half a percent of a step of 50 ms."""
NOISE = 0.02
"""Distance of the quartiles above which a median is not held against the target."""
OPTIONS = (
    "data.batching=fixed",  # every step is the same work
    "data.max_documents=600",
    "train.global_batch_size=2",
    "train.micro_batch_size=1",
    "logger.wandb_project=null",
)


class Switched(Callback):
    """A throughput callback that is on in every other block of steps."""

    #: Wall and processor seconds of each block, on and off, of the run that ended last.
    blocks: dict[bool, list[tuple[float, float]]] = {}
    overhead_ms: dict[int, float] = {}
    """Milliseconds a step, as its rows say, by log point."""

    def __init__(self) -> None:
        self.callback = ThroughputCallback("exact", peak_flops=1e12)
        self.on = True
        self._steps = 0
        Switched.blocks, Switched.overhead_ms = {True: [], False: []}, {}

    def observe(self, data_iterator: Any) -> Iterator[Any]:
        """Both ways to the same batches."""
        observed, bare = self.callback.observe(data_iterator), data_iterator
        while True:
            yield next(observed if self.on else bare)

    def on_train_start(self, context: CallbackContext) -> None:
        self.callback.on_train_start(context)

    def on_train_step_start(self, context: CallbackContext) -> None:
        block, place = divmod(self._steps - WARM_UP, BLOCK)
        if place == 0:
            self._close()
            pair, second = divmod(block, 2)
            self.on = (pair + second) % 2 == 0
            self._start = time.perf_counter(), time.process_time()
        if self.on:
            self.callback.on_train_step_start(context)

    def on_train_step_end(self, context: CallbackContext) -> None:
        if self.on:
            self.callback.on_train_step_end(context)
            if row := self.callback.latest:
                Switched.overhead_ms[row["step"]] = row.get("throughput/overhead_ms", 0.0)
        self._steps += 1

    def on_train_end(self, context: CallbackContext) -> None:
        self._close()
        self.callback.on_train_end(context)

    def _close(self) -> None:
        if self._steps > WARM_UP:
            wall, processor = self._start
            Switched.blocks[self.on].append((time.perf_counter() - wall, time.process_time() - processor))


def measure(log_interval: int) -> dict[bool, list[tuple[float, float]]]:
    """Train; wall and processor seconds of the blocks with and without the callback, in pairs."""
    from bridge.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"logger.log_interval={log_interval}",
            f"logger.dir={folder}",
            f"train.train_iters={WARM_UP + 2 * PAIRS * BLOCK}",
        )
        cfg = load_recipe("tiny", [*OPTIONS, *options])
        cfg.callbacks = [{"_target_": "benchmarks.step_time.Switched"}]
        with contextlib.redirect_stdout(io.StringIO()) as console:
            if train(cfg):
                raise RuntimeError(console.getvalue())
    return Switched.blocks


def rows() -> Iterator[Row]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for interval, target in ((1, None), (10, TARGET_RATIO)):
        blocks = measure(interval)
        quiet_everywhere = []
        for number, kind in enumerate(("wall", "processor")):
            pairs = zip(blocks[True], blocks[False], strict=True)
            ratios = [on[number] / off[number] for on, off in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            step = statistics.median(off[number] for off in blocks[False]) / BLOCK
            note = f"{len(ratios)} pairs, quartiles {low:.4f} and {high:.4f}, step {1e3 * step:.0f} ms"
            quiet = high - low < NOISE
            name = f"with / without, log_interval {interval}, {kind} time"
            yield Row(name, middle, "ratio", target if quiet else None, note if quiet else f"{note}; too noisy to judge")
            quiet_everywhere.append(quiet)
        fastest = {on: min(processor for _, processor in blocks[on]) for on in (True, False)}
        name = f"the same, fastest blocks, log_interval {interval}"
        yield Row(name, fastest[True] / fastest[False], "ratio", target if all(quiet_everywhere) else None)
        own = 1e3 * statistics.median(Switched.overhead_ms.values())
        note = "by its own clock, median of the rows"
        yield Row(f"callback in these steps, log_interval {interval}", own, "us/step", TARGET_US if target else None, note)
