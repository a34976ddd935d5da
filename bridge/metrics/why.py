"""Why the MFU of a run is what it is: the parts of its steps in words, the largest loss and what helps against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, Optional

from bridge.metrics.time_parts import PARTS
from bridge.text import seconds

PREFIX = "throughput/time/"

#: What is worth trying first against each part.
REMEDIES = {
    "padding": "pack documents instead of padding them (data.batching=packed)",
    "recompute": "recompute less where memory allows it",
    "kernels": "larger micro-batches, less tensor parallelism or fused kernels; `bridge peak` measures what these shapes allow",
    "compute": "name the device's peak (hardware.peak_flops) to see what of it is work",
    "imbalance": "even out the work or find the slow device: throughput/imbalance/* names the rank and the cause",
    "bubble": "more micro-batches a step, or more chunks a stage (virtual_pipeline_model_parallel_size)",
    "communication": "let it overlap (overlap_grad_reduce, overlap_param_gather), or split the model over fewer ranks",
    "optimizer": "share it between replicas (use_distributed_optimizer), or take larger batches",
    "data": "more loader workers (data.num_workers), or data that is tokenized and packed beforehand",
    "host": "fewer and larger micro-batches, CUDA graphs, less logging: the devices wait for Python",
}


def waterfall(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a mean step by part, in the order of ``PARTS``; they add up. Empty where no row has parts.

    Rows without all the parts that others have (an interval before the first sample) are left out.
    """
    with_parts = [{key.removeprefix(PREFIX): row[key] for key in row if key.startswith(PREFIX)} for row in rows]
    names = {name for row in with_parts for name in row}
    whole = [row for row in with_parts if row.keys() == names]
    return {name: fmean(row[name] for row in whole) for name in PARTS if name in names} if whole else {}


def why(parts: Mapping[str, float]) -> Optional[str]:
    """One or two sentences; None without parts."""
    step = sum(parts.values())
    if not parts or step <= 0:
        return None
    losses = sorted((name for name in parts if name != "ideal"), key=lambda name: -parts[name])
    first, *others = [name for name in losses if parts[name] > 0] or losses[:1]
    begin = f"A mean step takes {seconds(step)}"
    if "ideal" in parts:
        work = seconds(parts["ideal"])
        begin = f"Mean MFU {parts['ideal'] / step:.1%}: of {seconds(step)} per step {work} are the counted work at the peak"
    rest = ", ".join(f"{name} {parts[name] / step:.0%}" for name in others if parts[name] >= 0.02 * step)
    return f"{begin}. Most of the rest is {first}, {seconds(parts[first])} ({parts[first] / step:.0%}): {REMEDIES[first]}." + (
        f" Then {rest}." if rest else ""
    )
