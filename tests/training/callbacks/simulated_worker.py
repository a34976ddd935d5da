"""Single ranks of large jobs, in torch.distributed's fake process group (its collectives leave tensors as they are).

python simulated_worker.py CASES.json RESULTS.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import callback_driver as driver
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore
from unmeasured import tell_peak

from bridge.metrics.meter import Meter
from bridge.metrics.place import find_place
from bridge.training.callbacks import ThroughputCallback
from bridge.training.engine.initialize import leave_groups


def run(world_size: int, rank: int, layout: dict[str, int], steps: int) -> dict[str, Any]:
    """Twenty steps, say, of one rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.get("tp", 1),
        pipeline_model_parallel_size=layout.get("pp", 1),
        virtual_pipeline_model_parallel_size=layout.get("vpp"),
        context_parallel_size=layout.get("cp", 1),
        expert_model_parallel_size=layout.get("ep", 1),
        create_gloo_process_groups=False,
    )
    Meter._mispaired = lambda *_: ""  # type: ignore[method-assign]  # there are no other ranks to be paired with
    callback = ThroughputCallback(log_interval=10, detail=0)
    data = map(driver.packed, driver.draw(rank, 2 * steps))
    loop = driver.Loop([callback], driver.state(driver.config(num_layers=32)), data).start()
    begin = time.perf_counter()
    with driver.AllReduces() as sums:
        loop.steps(steps).end()
    seconds = time.perf_counter() - begin
    place = find_place()
    leave_groups()
    dist.destroy_process_group()
    return {
        "rank": rank,
        "speaks": place.contributes,
        "place": place.indices(rank),
        "replica": place.replica,
        "replicas": place.replicas,
        "names": callback._meter.layout.names,
        "sums": sums.seen,
        "tokens": callback.state_dict()["total_tokens"],
        "seconds": seconds,
    }


if __name__ == "__main__":
    tell_peak()
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = [[run(case["ranks"], rank, case, 20) for rank in case["look_at"]] for case in cases]
    Path(sys.argv[2]).write_text(json.dumps(results))
