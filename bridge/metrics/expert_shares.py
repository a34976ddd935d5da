"""The experts' share of a rank's work, which distinguishes a rank whose experts received more tokens from a slow device.

Routers send tokens to the experts of other ranks, so a rank computes other assignments than those of its own batches.  Let ``f``
be the experts' fraction of a stage's work, ``r`` the load of a rank's experts over the mean of all ranks, and ``d`` the work of
its own batches over the mean.  Then its work is ``1 + f (r / d - 1)`` times that of its own batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from bridge.flops.plan import Number, Plan
from bridge.flops.routed import assignment_flops, expert_count, expert_places
from bridge.flops.shapes import ConfigError
from bridge.metrics.experts import LOADS
from bridge.metrics.interval import pipeline_stages

if TYPE_CHECKING:
    from bridge.metrics.instruments import Summed
    from bridge.metrics.place import Place
    from bridge.metrics.throughput import Work


@dataclass(frozen=True)
class ExpertShares:
    """The price of an assignment and the pipeline stage of each layer of experts.

    Attributes:
        prices: training FLOPs of one assignment. stages: pipeline stage. Both by layer of experts.
        experts: number of experts per layer.
        ranks: number of ranks that they are spread over, in equal blocks.
        even: whether every expert computes the same number of rows, however many assignments it has.
    """

    prices: Sequence[Number]
    stages: Sequence[int]
    experts: int
    ranks: int
    even: bool = False

    def factor(self, summed: Summed, work: Work, stands: Mapping[str, int], data: float) -> float | None:
        """Work of a rank with the load of its experts, over its work with the mean load; over all replicas of these experts.

        Args:
            summed: the sums of all ranks, of which the sampled steps are used.
            work: the work of the sampled steps.
            stands: the rank's index in each dimension.
            data: work of its replica over the mean.
        """
        if self.even:
            return 1.0
        stage = stands.get("pipeline", 0)
        of_stage = work.stage_work[stage] if work.stage_work else work.flops
        loads = summed.layout.get(summed.sampled, LOADS)
        blocks = self._blocks(loads, stage)
        if not of_stage or "expert" not in stands or not (of_experts := sum(blocks)):
            return None
        ratio = Fraction(blocks[stands["expert"]] * self.ranks) / of_experts
        return float(1 + Fraction(of_experts) / of_stage * (ratio / Fraction(data) - 1))

    def _blocks(self, loads: Sequence[int], stage: int) -> list[Number]:
        """FLOPs of the experts on each rank of a stage."""
        width = self.experts // self.ranks
        blocks: list[Number] = [0] * self.ranks
        for layer, price in enumerate(self.prices):
            if self.stages[layer] == stage:
                for rank in range(self.ranks):
                    start = layer * self.experts + rank * width
                    blocks[rank] += price * sum(loads[start : start + width])
        return blocks


def shares_of(plan: Plan, place: Place, even: bool = False) -> ExpertShares | None:
    """The shares of a model whose experts are spread over ranks; None if they are not, or if their stages are unknown.

    Args:
        plan: the plan of the model as configured.
        place: place of this process.
        even: whether every expert is padded to the same number of rows.
    """
    if place.expert < 2:
        return None
    try:
        placement = plan.placement(pipeline_stages(plan, place))
    except ConfigError:  # the report of the stages warns of it
        return None
    stages = [placement.stage(one) for one in expert_places(plan)]
    return ExpertShares(assignment_flops(plan), stages, expert_count(plan), place.expert, even)
