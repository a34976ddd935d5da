"""How much of a rank's work its experts are: what tells a rank whose experts got more tokens from a slow device.

Tokens go where routers send them, so that a rank computes other assignments than those of its own batches.  With ``f`` the
part of a stage's work that experts do, ``r`` what a rank's experts were given over the mean of all ranks, and ``d`` the work
of its own batches over the mean, its work is ``1 + f (r / d - 1)`` times what it would be with its own experts.
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
    """Of each layer of experts what an assignment costs, and where the layer stands.

    Attributes:
        prices: training FLOPs of one assignment. stages: pipeline stage. Both by layer of experts.
        experts: of a layer.
        ranks: over which they are spread, in equal blocks.
        even: every expert computes the same number of rows, whatever it was given.
    """

    prices: Sequence[Number]
    stages: Sequence[int]
    experts: int
    ranks: int
    even: bool = False

    def factor(self, summed: Summed, work: Work, stands: Mapping[str, int], data: float) -> float | None:
        """Work of a rank with what its experts were given, over its work with the mean; of all replicas of these experts.

        Args:
            summed: the sums of all ranks; counted are the sampled steps.
            work: of these.
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
    """The shares of a model whose experts are spread over ranks; None where they are not, or their stages are not known.

    Args:
        plan: as the model is configured, before anything is routed.
        place: of this process.
        even: every expert is filled up to the same number of rows.
    """
    if place.expert < 2:
        return None
    try:
        placement = plan.placement(pipeline_stages(plan, place))
    except ConfigError:  # said by whoever reports stages
        return None
    stages = [placement.stage(one) for one in expert_places(plan)]
    return ExpertShares(assignment_flops(plan), stages, expert_count(plan), place.expert, even)
