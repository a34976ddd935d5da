"""The place of a process in the job: which rank contributes which batches, and over which ranks numbers are summed.

A place is read once, at the start: from megatron-core's parallel state, from a ``DeviceMesh``, from the process group of the
ranks that see different batches, or from the user.  Without any of these, each rank is a data-parallel replica.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from bridge.flops.shapes import ConfigError


@dataclass(frozen=True)
class Dimension:
    """One parallel dimension: ranks that differ only in its index are ``stride`` apart."""

    name: str
    size: int
    stride: int = 1

    def index(self, rank: int) -> int:
        """The rank's index in this dimension."""
        return rank // self.stride % self.size


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank, world: this process and the number of processes, in ``group``.
        replica, replicas: data-parallel rank and size.
        contributes: whether this rank contributes its replica's batches; the others see the same batches and add nothing.
        pipeline, virtual, tensor, context, expert: sizes of the other dimensions.
        dimensions: the dimensions of more than one rank.
        group: the ranks that are summed over; None for all ranks of the job.
        told: whether the place was specified; otherwise it is a guess, see :mod:`bridge.metrics.sharing`.
        dealt: whether a schedule assigns samples to ranks, several of which may share one (:mod:`bridge.metrics.dealt`).
    """

    rank: int = 0
    world: int = 1
    replica: int = 0
    replicas: int = 1
    contributes: bool = True
    pipeline: int = 1
    virtual: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    dimensions: tuple[Dimension, ...] = ()
    group: Any = None
    told: bool = True
    dealt: bool = False
    _seen: Any = field(default_factory=lambda: all_ranks(), repr=False, compare=False)
    """The job's process group when the place was read."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that reports to the user."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the rank that has the loss and the trackers in Megatron's loops."""
        return self.rank == self.world - 1

    def holds(self) -> bool:
        """Whether the process group of the start still exists; one that was initialized again is a different one."""
        return all_ranks() is self._seen and (self.group is None or _is_alive(self.group))

    def indices(self, rank: int) -> dict[str, int]:
        """The index of a rank in each dimension, by its name."""
        return {dimension.name: dimension.index(rank) for dimension in self.dimensions}


def find_place(
    mesh: Any = None,
    data_parallel: Any = None,
    contributes: bool | None = None,
    process_group: Any = None,
) -> Place:
    """The place of this process, as the user describes it; else megatron-core's; else each rank is a replica.

    Args:
        mesh: a ``torch.distributed.device_mesh.DeviceMesh`` with named dimensions over all ranks that train together.
        data_parallel: the dimension or dimensions of ``mesh`` along which batches differ; without a mesh, this rank's process
            group of ranks that see different batches.
        contributes: whether this rank contributes its batches. Every rank must pass it, because it needs a collective.
        process_group: the ranks that train together; by default all ranks of the job.

    Raises:
        ConfigError: The mesh lacks a dimension, or options contradict each other.
    """
    data = check_dimensions(mesh, data_parallel)
    if mesh is not None:
        return _of_mesh(mesh, data, process_group)
    if not is_distributed():
        return Place(contributes=contributes is not False)
    if data_parallel is not None:
        return _of_group(data_parallel, process_group)
    if contributes is not None:
        return _given(contributes, process_group)
    if process_group is None and (state := parallel_state()) is not None:
        return _of_megatron(state)
    rank, world = dist.get_rank(process_group), dist.get_world_size(process_group)
    return Place(
        rank=rank,
        world=world,
        replica=rank,
        replicas=world,
        group=process_group,
        dimensions=_several("data_parallel", world),
        told=False,
    )


def check_dimensions(mesh: Any, data_parallel: Any) -> tuple[str, ...]:
    """The dimensions of ``mesh`` that ``data_parallel`` names; none without a mesh.

    Raises:
        ConfigError: The mesh does not have them, or there is no mesh.
    """
    if mesh is None:
        if isinstance(data_parallel, (str, list, tuple)):
            raise ConfigError(f"data_parallel={data_parallel!r} names dimensions of a mesh; give mesh= too")
        return ()
    names: tuple[str, ...] = tuple(mesh.mesh_dim_names or ())
    data = (data_parallel,) if isinstance(data_parallel, str) else tuple(data_parallel or ())
    if not data or not set(data) <= set(names):
        known = ", ".join(names) or "none"
        raise ConfigError(f"data_parallel={data_parallel!r} must be names of the mesh's dimensions; it has {known}")
    return data


def parallel_state() -> Any:
    """megatron-core's module ``parallel_state`` if it is initialized; else None."""
    state = sys.modules.get("megatron.core.parallel_state")  # if nothing imported it, it is not initialized
    return state if state is not None and state.model_parallel_is_initialized() else None


def all_ranks() -> Any:
    """The process group of all ranks, which changes if torch.distributed is initialized again; None if it is not initialized."""
    return dist.group.WORLD if is_distributed() else None


def is_distributed() -> bool:
    """Whether torch.distributed is initialized."""
    return dist.is_available() and dist.is_initialized()


def _is_alive(group: Any) -> bool:
    try:
        return bool(dist.get_process_group_ranks(group))
    except (KeyError, ValueError):  # destroyed
        return False


def _several(name: str, size: int, stride: int = 1) -> tuple[Dimension, ...]:
    return (Dimension(name, size, stride),) if size > 1 else ()


# ---- where places come from -------------------------------------------------------------------------------------------


def _of_megatron(state: Any) -> Place:
    """The place according to megatron-core's parallel state, for any order of its dimensions."""
    groups = {
        "data_parallel": state.get_data_parallel_group(),
        "pipeline": state.get_pipeline_model_parallel_group(),
        "context": state.get_context_parallel_group(),
        "tensor": state.get_tensor_model_parallel_group(),
        "expert": state.get_expert_model_parallel_group(),
    }
    ranks = {name: dist.get_process_group_ranks(group) for name, group in groups.items()}
    others = [groups[name].rank() for name in ("pipeline", "context", "tensor")]
    return Place(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        replica=groups["data_parallel"].rank(),
        replicas=groups["data_parallel"].size(),
        contributes=not any(others),
        pipeline=groups["pipeline"].size(),
        virtual=state.get_virtual_pipeline_model_parallel_world_size() or 1,
        tensor=groups["tensor"].size(),
        context=groups["context"].size(),
        expert=state.get_expert_model_parallel_world_size(),
        dimensions=tuple(Dimension(name, len(own), own[1] - own[0]) for name, own in ranks.items() if len(own) > 1),
    )


#: Our names of dimensions, by what others call them.
_NAMES = {
    **dict.fromkeys(("pp", "pipe", "pipeline"), "pipeline"),
    **dict.fromkeys(("tp", "tensor"), "tensor"),
    **dict.fromkeys(("cp", "sp", "context", "sequence"), "context"),
}


def _of_mesh(mesh: Any, data: tuple[str, ...], group: Any) -> Place:
    world = dist.get_world_size(group)
    if mesh.size() != world:
        raise ConfigError(f"mesh= has {mesh.size()} of {world} ranks; give the whole mesh, or its ranks as process_group=")
    # [world, dimensions]: the coordinates of each rank.
    ranks, coordinates = mesh.mesh.flatten().argsort(), torch.cartesian_prod(*map(torch.arange, mesh.shape)).reshape(world, -1)
    ours = [_NAMES.get(name, name) for name in mesh.mesh_dim_names]
    columns = dict(zip(ours, coordinates[ranks].T.tolist(), strict=True))
    sizes = dict(zip(ours, mesh.shape, strict=True))
    replica = [0] * world
    for name in (_NAMES.get(name, name) for name in data):
        replica = [index * sizes[name] + own for index, own in zip(replica, columns.pop(name), strict=True)]
    rank = dist.get_rank(group)
    found = (_dimension(name, column) for name, column in {"data_parallel": replica, **columns}.items())
    return Place(
        rank=rank,
        world=world,
        replica=replica[rank],
        replicas=max(replica) + 1,
        contributes=not any(column[rank] for column in columns.values()),
        dimensions=tuple(dimension for dimension in found if dimension is not None),
        group=group,
        **{name: sizes[name] for name in ("pipeline", "tensor", "context") if name in columns},
    )


def _dimension(name: str, indices: Sequence[int]) -> Dimension | None:
    """The dimension in which the ranks have these indices; None if they all have one index, or in no regular order."""
    size = max(indices) + 1
    dimension = Dimension(name, size, indices.index(1)) if size > 1 else None
    regular = dimension is not None and all(dimension.index(rank) == index for rank, index in enumerate(indices))
    return dimension if regular else None


def _of_group(data: Any, group: Any) -> Place:
    """The place according to a group of ranks that see different batches.

    There is one such group for each set of ranks that share a batch; the group of the first rank of all contributes.
    """
    try:
        ranks, everyone = dist.get_process_group_ranks(data), dist.get_process_group_ranks(group)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"data_parallel={data!r} is not a process group; give one, or mesh= and its dimension") from error
    return Place(
        rank=dist.get_rank(group),
        world=len(everyone),
        replica=dist.get_rank(data),
        replicas=len(ranks),
        contributes=min(everyone) in ranks,
        dimensions=_several("data_parallel", len(ranks)) if ranks == everyone else (),
        group=group,
    )


def _given(contributes: bool, group: Any) -> Place:
    """The place if each rank says whether it contributes."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    said: list[Any] = [None] * world
    dist.all_gather_object(said, bool(contributes), group=group)
    if not any(said):
        raise ConfigError("contributes=False on every rank: one rank of each replica must contribute its batches")
    return Place(
        rank=rank,
        world=world,
        replica=sum(said[:rank]) if contributes else 0,
        replicas=sum(said),
        contributes=contributes,
        dimensions=_several("data_parallel", world) if all(said) else (),
        group=group,
    )
