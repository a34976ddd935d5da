"""Detects ranks that share their batches in a model that megatron-core did not shard: the user must say which of them count.

Gradients are averaged over exactly the ranks that see different batches: if these are not all ranks, some share their batches.
So do ranks over which a model is sharded otherwise: by DTensors on a larger mesh, or by attention over a sequence-parallel group
(DeepSpeed-Ulysses).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import Module

_REMEDY = (
    "tell the callback which ranks see different batches: mesh= and data_parallel=, or data_parallel= with their process group, "
    "or contributes= on each rank"
)


def shared_batches(model: Sequence[Any] | None, world: int) -> str | None:
    """Why ranks share their batches, as a sentence with its remedy; None if nothing indicates it.

    Args:
        model: the model chunks on this rank.
        world: number of ranks of the job.
    """
    chunks = [chunk for chunk in model or () if isinstance(chunk, Module)]
    why = next((why for chunk in chunks for why in _reasons(chunk, world)), None) or _sequence_groups()
    return why and f"ranks share their batches ({why}), so the sum over all would count them several times; {_REMEDY}"


def _reasons(model: Module, world: int) -> Iterator[str]:
    data = 0
    """Number of ranks over which gradients are averaged; 0: unknown."""
    for module in model.modules():
        if size := _averaged_over(module):
            data = max(data, size)
        if (group := getattr(module, "spg", None)) is not None and type(module).__name__ == "DistributedAttention":
            if torch.distributed.get_world_size(group) > 1:
                yield "attention over a sequence-parallel group"
    if data and data < world:
        yield f"gradients are averaged over {data} of {world} ranks"
    for name, parameter in model.named_parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.size() > max(data, 1) and any(place.is_shard() for place in parameter.placements):
            yield f"{name} is sharded over a mesh of {tuple(mesh.shape)} ranks, {max(data, 1)} of them data parallel"


def _averaged_over(module: Module) -> int:
    """Number of ranks over which a data-parallel wrapper averages gradients; 0 if the module is no such wrapper."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel) or type(module).__name__ == "FullyShardedDataParallel":
        return _replicas_of(module)
    state = getattr(module, "_get_fsdp_state", None)  # torch's fully_shard
    group = getattr(state(), "_fsdp_param_group", None) if callable(state) else None
    return group.mesh_info.mesh.size() if group is not None else 0


def _replicas_of(module: Any) -> int:
    groups = (getattr(module, name, None) for name in ("process_group", "_inter_node_pg"))
    return math.prod(group.size() for group in groups if group is not None)


def _sequence_groups() -> str | None:
    """A reason if DeepSpeed has sequence-parallel groups of several ranks; else None."""
    groups = sys.modules.get("deepspeed.utils.groups")
    size = getattr(groups, "_get_sequence_parallel_world_size", None)
    try:
        ranks = size() if callable(size) else 1
    except Exception:  # not set up
        return None
    return f"DeepSpeed's sequence-parallel groups have {ranks} ranks" if ranks > 1 else None
