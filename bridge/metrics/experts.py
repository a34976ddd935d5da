"""The load of experts over all ranks: how many assignments were dropped, and how even the load was.

Hooks on the routers count (:mod:`bridge.training.routing`).  The vector has the assignments to each expert of every layer, and
where the plan prices assignments, their sums among its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.flops.plan import Plan
from bridge.flops.routed import assignments, padding
from bridge.metrics.instruments import Instrument, Measurement, Summed
from bridge.metrics.totals import whole
from bridge.metrics.vector import Slice, VectorLayout

if TYPE_CHECKING:
    import torch

    from bridge.metrics.batch_statistics import BatchStatistics
    from bridge.metrics.throughput import Interval, Metrics

EXPERTS = "experts"
REQUESTS, LOADS = "expert_requests", "expert_loads"


class ExpertCounter(Instrument):
    """An instrument that adds a rank's counts to its sums at the end of each step, without waiting for the device.

    Args:
        routing: the counts of the hooks, a ``bridge.training.routing.Routing``.
    """

    def __init__(self, routing: Any) -> None:
        self._routing = routing
        self._positions: torch.Tensor | None = None

    def add_counts(self, batch: BatchStatistics, *, skipped: bool = False) -> None:
        """Add the counts since the last call to the sums of this rank, also for a skipped step, because the experts ran.

        Raises:
            Exception: what a hook raised.
        """
        import torch

        taken = self._routing.take()
        if taken is None:
            return
        requested, useful, rows = taken
        amounts = [useful.flatten()]
        if self._are_priced(batch.layout):
            amounts += [useful.sum(1), (rows - useful).sum(1)]
        if self._positions is None:
            self._positions = torch.tensor(self._places(batch.layout)).to(useful.device, non_blocking=True)
        batch.add_tensor(self._positions, torch.cat(amounts))
        batch.count(REQUESTS, requested)

    @staticmethod
    def _are_priced(layout: VectorLayout) -> bool:
        return assignments(0).name in layout

    def _places(self, layout: VectorLayout) -> list[int]:
        """Positions in the vector, in the order of the counts."""
        kinds = (assignments, padding) if self._are_priced(layout) else ()
        sums = [layout.index[kind(layer).name] for kind in kinds for layer in range(self._routing.layers)]
        return [*layout.range(LOADS), *sums]

    def lap(self) -> int:
        """The readings are in the sums."""
        return 0

    def close(self) -> None:
        """Leave the model as it was."""
        self._routing.close()


class Experts(Measurement):
    """Dropped tokens and the balance of experts.

    Args:
        routing: the counts of this rank.
        plan: the plan of the model as configured, if the plan of the run prices what was routed; else None.
    """

    what = EXPERTS

    def __init__(self, routing: Any, plan: Plan | None = None) -> None:
        self._routing, self._plan = routing, plan
        self.slices = (Slice(REQUESTS), Slice(LOADS, routing.layers * routing.experts))

    def open(self) -> ExpertCounter:
        return ExpertCounter(self._routing)

    def measured(self, summed: Summed) -> ExpertLoads | None:
        requested, flat, width = summed[REQUESTS][0], summed[LOADS], self._routing.experts
        if not requested:
            return None
        nominal = None
        if self._plan is not None:
            vector = [summed.timed[summed.layout.index[statistic.name]] for statistic in self._plan.statistics]
            nominal = whole(self._plan.evaluate(vector))
        layers = [flat[start : start + width] for start in range(0, len(flat), width)]
        return ExpertLoads(requested, layers, summed.place.expert, summed.place.world, nominal)


@dataclass(frozen=True)
class ExpertLoads:
    """The load of experts, over all ranks.

    Attributes:
        requested: number of assignments that routers requested.
        layers: for each layer of experts, the number of assignments that each expert computed.
        ranks: number of ranks that the experts of a layer are spread over.
        world: number of ranks of the job.
        nominal_flops: model FLOPs if no assignment had been dropped; None if the run counts these anyway.
    """

    requested: int
    layers: Sequence[Sequence[int]]
    ranks: int = 1
    world: int = 1
    nominal_flops: int | None = None

    def metrics(self, interval: Interval) -> Metrics:
        """Keys and values to log."""
        computed = sum(map(sum, self.layers))
        metrics: Metrics = {"throughput/dropped_tokens_fraction": 1 - computed / self.requested}
        balance = {number: _imbalance(loads) for number, loads in enumerate(self.layers) if any(loads)}
        if balance:
            metrics["throughput/imbalance/experts"] = max(balance.values())
        if computed and self.ranks > 1:
            metrics["throughput/imbalance/expert_ranks"] = self._waited_for() * self.ranks / computed
        for number, ratio in balance.items():
            metrics[f"throughput/imbalance/experts/layer_{number}"] = ratio
        if self.nominal_flops is not None:
            metrics["throughput/tflops/device_nominal"] = self.nominal_flops / interval.seconds / self.world / 1e12
        return metrics

    def _waited_for(self) -> int:
        """Assignments of the fullest rank of each layer, for which all others wait, summed over the layers."""
        width = len(self.layers[0]) // self.ranks
        return sum(max(sum(loads[start : start + width]) for start in range(0, len(loads), width)) for loads in self.layers)


def _imbalance(loads: Sequence[int]) -> float:
    return max(loads) * len(loads) / sum(loads)
