"""Samples that a schedule deals out to ranks: megatron-core's hybrid context parallelism.

Each sample of a step runs on as many ranks as its length needs, so that no rank speaks for a replica's batches.  The first of
the ranks that share a sample counts it, whole: each sample counts once.  Three things may pass on the way of a step's data,
and each tells who that is:

1. packed samples that the scheduler has not seen yet (:class:`HybridCPDataLoaderWrapper` takes them): context ranks take
   the same ones, so the first of them counts, as ever;
2. what that wrapper gives, ``({id: sample}, groups)``: ``groups[g][rank]`` are the ids that a rank runs in group g;
3. one sample on its way into a forward step, which says over how many ranks it is spread (``local_cp_size``): over the
   process group of that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridge.flops.shapes import ConfigError
from bridge.metrics.place import Place, parallel_state

#: megatron-core's field, and the class of what deals.
FIELD, _DEALER = "hybrid_context_parallel", "HybridCPDataLoaderWrapper"


def is_dealer(data: Any) -> bool:
    """Whether an iterator gives each rank the samples that a schedule dealt to it."""
    return any(kind.__name__ == _DEALER for kind in type(data).__mro__)


def place_of_dealt(place: Place) -> Place:
    """The place of a process whose samples are dealt out over all data and context ranks; as it was without megatron-core's
    groups, because then it is unknown.

    Args:
        place: as the groups alone have it.
    """
    if (state := parallel_state()) is None:
        return place
    group = state.get_data_parallel_group(with_context_parallel=True)
    stands = place.indices(place.rank)
    return replace(
        place,
        replica=group.rank(),
        replicas=group.size(),
        contributes=not stands.get("tensor") and not stands.get("pipeline"),
        dimensions=tuple(one for one in place.dimensions if one.name not in ("data_parallel", "context")),
        dealt=True,
    )


def own_batches(item: Any) -> list[Any]:
    """The micro-batches in what passed that this rank counts.

    Args:
        item: one of the three above; None, or a pair of None, on ranks that get their data from others.

    Raises:
        ConfigError: it is none of them, and does not tell who has which sample.
    """
    state = parallel_state()
    if item is None or (isinstance(item, tuple) and item == (None, None)):
        return []
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping):
        samples, groups = item
        rank = state.get_data_parallel_rank(with_context_parallel=True)
        return [_row(samples[one]) for one in _first_here(groups, rank)]
    if isinstance(item, Mapping) and item.get("local_cp_size") is not None:
        return [_row(item)] if _leads(state, int(item["local_cp_size"])) else []
    if isinstance(item, list) and all(isinstance(one, Mapping) and "cu_seqlens" in one for one in item):
        return [] if state.get_context_parallel_rank() else [item]
    raise ConfigError(
        f"{FIELD}=True: its schedule gives each context rank its own sequences, and a {type(item).__name__} does not show "
        f"which; observe the input of {_DEALER}, its output, or the samples of forward steps"
    )


def _first_here(groups: Iterable[Sequence[Sequence[Any]]], rank: int) -> Iterable[Any]:
    """Ids of the samples that no rank before this one runs too."""
    for group in groups:
        before = {one for other in group[:rank] for one in other}
        yield from (one for one in group[rank] if one not in before)


def _leads(state: Any, size: int) -> bool:
    return size == 1 or state.get_hybrid_data_context_parallel_groups(group_size=size).rank() == 0


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample [s] as a batch [1, s], as it will run."""
    return {"tokens": sample["tokens"].reshape(1, -1)}
