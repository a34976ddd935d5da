"""Samples that a schedule assigns to ranks: megatron-core's hybrid context parallelism.

Each sample of a step runs on as many ranks as its length needs, so no rank sees all batches of a replica.  The first of the ranks
that share a sample counts all of it, so that each sample counts once.  The data of a step can be observed at three places, at
each of which that rank is known:

1. packed samples before the scheduler (the input of ``HybridCPDataLoaderWrapper``): all context ranks take the same samples, and
   the first of them counts;
2. the wrapper's output, ``({id: sample}, groups)``: ``groups[g][rank]`` are the ids that a rank runs in group g;
3. one sample on its way into a forward step: its ``local_cp_size`` is the size of the process group that shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridge.flops.shapes import ConfigError
from bridge.metrics.place import Place, parallel_state

#: megatron-core's field, and the class that assigns the samples.
FIELD, _DEALER = "hybrid_context_parallel", "HybridCPDataLoaderWrapper"


def is_dealer(data: Any) -> bool:
    """Whether an iterator yields the samples that the schedule assigned to each rank."""
    return any(kind.__name__ == _DEALER for kind in type(data).__mro__)


def place_of_dealt(place: Place) -> Place:
    """The place of a process whose samples are assigned over all data-parallel and context-parallel ranks.

    Args:
        place: the place according to the process groups; returned as it is without megatron-core's groups.
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
    """The micro-batches in observed data that this rank counts.

    Args:
        item: data of one of the three places above; None, or a pair of None, on ranks that get their data from others.

    Raises:
        ConfigError: it is from none of these places, so it is unknown which rank has which sample.
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
    """The ids of the samples that no earlier rank runs too."""
    for group in groups:
        before = {one for other in group[:rank] for one in other}
        yield from (one for one in group[rank] if one not in before)


def _leads(state: Any, size: int) -> bool:
    return size == 1 or state.get_hybrid_data_context_parallel_groups(group_size=size).rank() == 0


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample [s] as the batch [1, s] that will run."""
    return {"tokens": sample["tokens"].reshape(1, -1)}
