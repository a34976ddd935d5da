"""Ranks without megatron-core that share batches: torchrun --nproc-per-node 4 place_worker.py FOLDER."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from unmeasured import tell_peak

from bridge.flops import ConfigError
from bridge.metrics.host import Host
from bridge.metrics.place import find_place
from bridge.training.callbacks import CallbackContext, ThroughputCallback

MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 257,
    "seq_length": 64,
}
STEPS = 4


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(hidden))


class DistributedAttention(torch.nn.Module):
    """As DeepSpeed's: local attention between two exchanges over its sequence-parallel group."""

    def __init__(self, sequence_process_group: Any) -> None:
        super().__init__()
        self.local, self.spg = Mlp(), sequence_process_group

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.local(hidden)


def length(replica: int, step: int) -> int:
    """Of the sequence that a replica sees."""
    return 3 + 5 * replica + step


def train(
    model: Any = None, replica: int = 0, steps: int = STEPS, off: int = 0, lost_after: int = 0, **options: Any
) -> dict[str, Any]:
    """The events of a few steps; ``off``: the host of this rank counts its steps from elsewhere."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bridge").addHandler(handler)
    callback = ThroughputCallback("exact", log_interval=2, peak_flops=1e12, **options)
    done = SimpleNamespace(step=off)
    host = Host(config=MODEL, step=lambda: done.step, log_interval=2, model=None if model is None else [model])
    context = CallbackContext(state=host, model=host.model)
    callback.on_train_start(context)
    for step in range(steps):
        callback.on_train_step_start(context)
        callback.count({"tokens": torch.zeros(1, length(replica, step))})
        done.step += 1
        callback.on_train_step_end(context)
        if done.step == lost_after:
            dist.destroy_process_group()
    callback.on_train_end(context)
    logging.getLogger("bridge").removeHandler(handler)
    return {"latest": callback.latest, "told": told, "complete": callback.state_dict().get("complete")}


def tensor_parallel(mesh: Any) -> Mlp:
    return parallelize_module(Mlp(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def main(folder: str) -> None:
    tell_peak()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    flat = init_device_mesh("cpu", (4,), mesh_dim_names=("all",))
    both = tensor_parallel(mesh["tp"])
    fully_shard(both, mesh=mesh["dp"])
    sharded = Mlp()
    fully_shard(sharded, mesh=flat)
    hybrid = Mlp()
    fully_shard(hybrid, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    data, tensor = divmod(rank, 2)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    strided = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    crossed = init_device_mesh("cpu", (2, 2), mesh_dim_names=("tp", "dp"))
    cases: dict[str, Any] = {
        "nobody says anything": lambda: train(replica=rank),
        "fsdp": lambda: train(sharded, replica=rank),
        "hsdp": lambda: train(hybrid, replica=rank),
        "tensor parallel, nobody says so": lambda: train(tensor_parallel(flat), replica=0),
        "tensor and data parallel, nobody says so": lambda: train(both, replica=data),
        "ddp over half of the ranks": lambda: train(
            torch.nn.parallel.DistributedDataParallel(Mlp(), process_group=strided[tensor]), replica=data
        ),
        "sequence parallel, nobody says so": lambda: train(DistributedAttention(pairs[data]), replica=data),
        "mesh": lambda: train(both, replica=data, mesh=mesh, data_parallel="dp"),
        "crossed mesh": lambda: train(both, replica=tensor, mesh=crossed, data_parallel="dp"),
        "two dimensions of data": lambda: train(sharded, replica=rank, mesh=crossed, data_parallel=("tp", "dp")),
        "group": lambda: train(both, replica=data, data_parallel=strided[tensor]),
        "contributes": lambda: train(both, replica=data, contributes=tensor == 1),
        "process group": lambda: train(replica=tensor, process_group=pairs[data]),
        "one rank's steps are off": lambda: train(replica=rank, off=10 * (rank == 2)),
    }
    results = {name: case() for name, case in cases.items()}
    try:
        ThroughputCallback(mesh=mesh, data_parallel="ddp")
    except ConfigError as error:
        results["no such dimension"] = str(error)
    results["places"] = {"mesh": find_place(mesh, "dp").indices(rank), "crossed": find_place(crossed, "dp").indices(rank)}
    dist.barrier()
    results["the group is gone"] = train(replica=rank, lost_after=3)
    Path(folder, f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
