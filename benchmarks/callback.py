"""What the throughput callback costs: microseconds per micro-batch, and per step without a model.

    python benchmarks/callback.py [--json FILE]

Micro-batches: the fastest of many repetitions.  Steps: processor time of the training thread, events and two packed
micro-batches a step, JSON lines and W&B (offline) as trackers; the share is that of a step of 50 ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import timeit
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bridge.flops import compile_plan
from bridge.metrics.meter import Meter
from bridge.metrics.timing import HostClock
from bridge.metrics.trackers import open_trackers
from bridge.training.callbacks import CallbackContext, CallbackManager, ThroughputCallback

MODEL: dict[str, Any] = {
    "num_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "ffn_hidden_size": 14336,
    "vocab_size": 128256,
    "seq_length": 8192,
}
WINDOWED = {**MODEL, "window_size": (127, 0), "window_attn_skip_freq": 2}
STEP_SECONDS = 0.05


def packed(segments: int) -> dict[str, Any]:
    """A packed micro-batch of so many documents."""
    lengths = np.random.default_rng(segments).integers(1, 200, segments)
    offsets = torch.tensor([0, *lengths.tolist()]).cumsum(0).int()
    return {"tokens": torch.zeros(1, int(lengths.sum())), "cu_seqlens": offsets, "attention_mask": None}


def forms() -> dict[str, dict[str, Any]]:
    """Micro-batches by name."""
    tokens = torch.zeros(4, 512)
    return {
        **{f"packed, {segments} segment(s)": packed(segments) for segments in (1, 64, 1024)},
        "padded, 4 x 512": {"tokens": tokens, "attention_mask": torch.ones(4, 512, dtype=torch.bool)},
        "fixed, 4 x 512": {"tokens": tokens, "attention_mask": None},
    }


def adding(model: dict[str, Any], batch: dict[str, Any]) -> float:
    """Microseconds to add a micro-batch."""
    meter = Meter(compile_plan(model, convention="exact"), clock=HostClock())
    meter.add_batch(batch)
    return min(timeit.repeat(lambda: meter.add_batch(batch), number=500, repeat=100)) / 500 * 1e6


def stepping(log_interval: int, steps: int = 400) -> float:
    """Microseconds of the training thread per step."""
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

        def run(manager: CallbackManager, count: int) -> float:
            context = CallbackContext(state=state, model=[], user_state=manager.user_state, skipped_iter=False)
            start = time.thread_time()
            for _ in range(count):
                manager.fire("on_train_step_start", context)
                next(data), next(data)
                manager.fire("on_train_step_end", context)
            return time.thread_time() - start

        manager = CallbackManager([ThroughputCallback("exact", log_interval=log_interval, peak_flops=1e30)])
        data = manager.observe(batches)
        manager.fire("on_train_start", CallbackContext(state=state, model=[], user_state=manager.user_state))
        run(manager, 2 * log_interval)
        with_callback = run(manager, steps)
        data = batches
        without = run(CallbackManager(), steps)
        trackers.close()
    return (with_callback - without) / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    batches = [
        {"micro-batch": name, "dense": adding(MODEL, batch), "sliding window": adding(WINDOWED, batch)}
        for name, batch in forms().items()
    ]
    steps = [{"log_interval": interval, "us": stepping(interval)} for interval in (1, 10)]
    table = Table("micro-batch", "dense", "sliding window", title="microseconds to add a micro-batch")
    for row in batches:
        table.add_row(row["micro-batch"], f"{row['dense']:.1f}", f"{row['sliding window']:.1f}")
    Console().print(table)
    table = Table("log_interval", "microseconds", "of a 50 ms step", title="one step")
    for row in steps:
        table.add_row(str(row["log_interval"]), f"{row['us']:.0f}", f"{row['us'] / STEP_SECONDS / 1e4:.3f} %")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"micro_batches": batches, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
