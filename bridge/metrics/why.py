"""Explains a run's MFU in words: the parts of its steps, the largest loss and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from bridge.metrics.time_parts import PARTS
from bridge.text import seconds

PREFIX = "throughput/time/"

#: What to try first to reduce each part.
REMEDIES = {
    "padding": "pack documents instead of padding them (data.batching=packed)",
    "recompute": "recompute less where memory allows it",
    "kernels": "use larger micro-batches, less tensor parallelism or fused kernels; `bridge peak` shows what these shapes allow",
    "compute": "set the device's peak (hardware.peak_flops) to see how much of it is work",
    "imbalance": "even out the work or find the slow device: throughput/imbalance/* names the rank and the cause",
    "bubble": "use more micro-batches per step, or more chunks per stage (virtual_pipeline_model_parallel_size)",
    "communication": "overlap it with compute (overlap_grad_reduce, overlap_param_gather), or split the model over fewer ranks",
    "optimizer": "shard it over the replicas (use_distributed_optimizer), or use larger batches",
    "data": "use more loader workers (data.num_workers), or tokenize and pack the data beforehand",
    "host": "the devices wait for Python: use fewer and larger micro-batches, CUDA graphs, or less logging",
}


def waterfall(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a mean step by part, in the order of ``PARTS``; they add up. Empty if no row has parts.

    Rows without all the parts that others have (an interval before the first sample) are left out.
    """
    with_parts = [{key.removeprefix(PREFIX): row[key] for key in row if key.startswith(PREFIX)} for row in rows]
    names = {name for row in with_parts for name in row}
    whole = [row for row in with_parts if row.keys() == names]
    return {name: fmean(row[name] for row in whole) for name in PARTS if name in names} if whole else {}


def why(parts: Mapping[str, float]) -> str | None:
    """The explanation in a few sentences; None if there are no parts."""
    step = sum(parts.values())
    if not parts or step <= 0:
        return None
    losses = sorted((name for name in parts if name != "ideal"), key=lambda name: -parts[name])
    begin = f"A mean step takes {seconds(step)}"
    if "ideal" in parts:
        work = seconds(parts["ideal"])
        begin = f"Mean MFU {parts['ideal'] / step:.1%}: of {seconds(step)} per step {work} are the counted work at the peak"
    if not losses:
        return f"{begin}."
    first, *others = [name for name in losses if parts[name] > 0] or losses[:1]
    rest = ", ".join(f"{name} {parts[name] / step:.0%}" for name in others if parts[name] >= 0.02 * step)
    return f"{begin}. Most of the rest is {first}, {seconds(parts[first])} ({parts[first] / step:.0%}): {REMEDIES[first]}." + (
        f" Then {rest}." if rest else ""
    )
