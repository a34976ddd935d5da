"""Cost against the number of ranks: what a rank sends per log point, and what the host does to send and to read it.

Ranks are simulated one at a time in torch.distributed's fake process group, whose collectives take no time: what is
measured is this package's own part.  megatron-core makes the groups of the layout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.adding import MODEL, packed
from benchmarks.rows import Row
from bridge.flops import compile_plan
from bridge.metrics.meter import Meter
from bridge.metrics.peak import Peak
from bridge.metrics.place import find_place
from bridge.training.engine.initialize import prepare_libraries

#: Ranks: tensor- and pipeline-parallel size; the rest is data parallel.
LAYOUTS = {1: (1, 1), 64: (8, 1), 1024: (8, 4), 16384: (8, 16), 131072: (8, 16)}
REPEATS = 500


def measure(ranks: int, tensor: int, pipeline: int) -> tuple[int, float, float]:
    """Length of the vector, and the fastest microseconds to launch a sum and to read a report, on rank 0."""
    from megatron.core import parallel_state

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    parallel_state.initialize_model_parallel(tensor, pipeline, create_gloo_process_groups=False)
    meter = Meter(compile_plan(MODEL, convention="exact"), find_place(), peak=Peak(1e15))
    meter._mispaired = lambda *_: ""  # type: ignore[method-assign]  # there are no other ranks to be paired with
    batch = packed(64)
    launches, reads = [], []
    for step in range(1, REPEATS):
        meter.add_batch(batch)
        meter.end_step()
        start = time.perf_counter()
        meter.launch(step)
        sent = time.perf_counter()
        report = meter.poll(wait=True)
        done = time.perf_counter()
        assert report is not None
        assert report.interval is not None
        launches.append(sent - start)
        reads.append(done - sent)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return len(meter.layout.names), 1e6 * min(launches), 1e6 * min(reads)


def _of(ranks: int) -> str:
    return f"{ranks:,} rank{'s' * (ranks > 1)}"


def rows() -> Iterator[Row]:
    prepare_libraries()
    for ranks, (tensor, pipeline) in LAYOUTS.items():
        length, launch, read = measure(ranks, tensor, pipeline)
        layout = f"TP {tensor}, PP {pipeline}, DP {ranks // tensor // pipeline}"
        yield Row(f"vector, {_of(ranks)}", length, "entries", None, layout)
        yield Row(f"sum, {_of(ranks)}", 2 * 8 * length, "bytes", None, "two int64 limbs an entry, once per log interval")
        yield Row(f"launch, {_of(ranks)}", launch, "us")
        yield Row(f"read and report, {_of(ranks)}", read, "us")
