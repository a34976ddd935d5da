"""What the callback does in a step, without a model: processor time of the training thread.

Events and two packed micro-batches a step, JSON lines and W&B (offline) as trackers; less the same loop without callback.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace

from benchmarks.adding import MODEL, packed
from benchmarks.rows import Row
from bridge.metrics.trackers import open_trackers
from bridge.training.callbacks import CallbackContext, CallbackManager, ThroughputCallback

STEP_SECONDS = 0.05
SHARE_OF_STEP = 0.3
"""Percent of a step of that length, at log interval 10."""


def stepping(log_interval: int, blocks: int = 40, steps: int = 20) -> float:
    """Microseconds per step: the median difference of paired blocks."""
    with tempfile.TemporaryDirectory() as folder:
        trackers = open_trackers(
            SimpleNamespace(
                dir=folder,
                metrics_file=f"{folder}/metrics.jsonl",
                wandb_project="bridge-benchmark",
                wandb_entity=None,
                wandb_exp_name=None,
                wandb_mode="offline",
                wandb_tags=(),
            )
        )
        state = SimpleNamespace(
            cfg=SimpleNamespace(model=SimpleNamespace(**MODEL)), train_state=SimpleNamespace(step=0), trackers=trackers
        )
        batches = itertools.cycle([packed(8), packed(12)])

        def run(manager: CallbackManager, data: Iterator[object]) -> float:
            context = CallbackContext(state=state, model=[], user_state=manager.user_state, skipped_iter=False)
            start = time.thread_time()
            for _ in range(steps):
                manager.fire("on_train_step_start", context)
                next(data), next(data)
                manager.fire("on_train_step_end", context)
                state.train_state.step += 1
            return time.thread_time() - start

        manager, nothing = (
            CallbackManager([ThroughputCallback("exact", log_interval=log_interval, peak_flops=1e30)]),
            CallbackManager(),
        )
        observed = manager.observe(batches)
        manager.fire("on_train_start", CallbackContext(state=state, model=[], user_state=manager.user_state))
        run(manager, observed)
        spent = [run(manager, observed) - run(nothing, batches) for _ in range(blocks)]
        trackers.close()
    return statistics.median(spent) / steps * 1e6


def rows() -> Iterator[Row]:
    for interval, target in ((1, None), (10, SHARE_OF_STEP)):
        spent = stepping(interval)
        yield Row(f"callback alone, log_interval {interval}", spent, "us/step")
        yield Row(f"share of a 50 ms step, log_interval {interval}", spent / STEP_SECONDS / 1e4, "%", target)
