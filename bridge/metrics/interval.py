"""Makes an interval of the vector that is summed over all ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bridge.flops.pipeline import PipelineLayout
from bridge.flops.plan import Coefficients, Plan
from bridge.flops.shapes import ConfigError
from bridge.metrics.batch_statistics import READ
from bridge.metrics.instruments import Instruments, Summed
from bridge.metrics.peak import Peak
from bridge.metrics.place import Place
from bridge.metrics.prices import unit_prices
from bridge.metrics.throughput import Interval, Work
from bridge.metrics.totals import Totals, whole
from bridge.metrics.vector import REPLICA_WORK, VectorLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What was summed since the last report.

    Attributes:
        work: everything. timed: without the warm-up. sampled: the sampled steps among these.
        maxima: the entries of which the maximum is taken.
        steps, timed_steps: number of steps in the first two.
        seconds: duration of the timed part.
        overhead_seconds: time that counting took on this rank in the timed part.
    """

    work: Sequence[int]
    timed: Sequence[int]
    sampled: Sequence[int]
    maxima: Sequence[int]
    steps: int
    timed_steps: int
    seconds: float
    overhead_seconds: float


class Intervals:
    """Makes intervals of sums.

    Args:
        plan: prices the statistics; None: tokens and seconds only.
        place: place of this process.
        layout: positions of the entries in the sums.
        instruments: the instruments whose readings are in the sums.
        peak: peak of one device.
    """

    def __init__(self, plan: Plan | None, place: Place, layout: VectorLayout, instruments: Instruments, peak: Peak) -> None:
        self._plan, self._place, self._layout, self._instruments, self._peak = plan, place, layout, instruments, peak
        self._size = len(plan.statistics) if plan else 0
        self._stages = _stages(plan, place)
        self._unread = _components_never_read(plan) if plan else frozenset()
        if plan is not None:
            plan.evaluate_components([0] * self._size)
            plan.evaluate_formats([0] * self._size)  # compiled on first use, so not in a step

    def priced(self, values: Sequence[int]) -> int:
        """The FLOPs of a vector; its tokens if there is no plan."""
        if self._plan is None:
            return values[self._layout.index["tokens"]]
        return whole(self._plan.evaluate(values[: self._size]))

    def work_of(self, values: Sequence[int], steps: int = 0) -> Work:
        """The work that a vector stands for, without what only rates need."""
        at = self._layout.index
        unread = values[at["unread_micro_batches"]]
        unknown = unread > 0 and not values[at["micro_batches"]]
        return Work(
            steps=steps,
            flops=None if self._plan is None or unknown else self.priced(values),
            tokens=None if unknown else values[at["tokens"]],
            positions=values[at["positions"]],
            sequences=values[at["sequences"]],
            unlearned_tokens=values[at["unlearned_tokens"]],
            unread_micro_batches=unread,
            data_wait_seconds=values[at["data_wait_ns"]] / 1e9 / self._place.replicas,
            replica_work=[] if unread else [values[position] for position in self._layout.range(REPLICA_WORK)],
            stage_work=[whole(stage.dot(values[: self._size])) for stage in self._stages],
        )

    def _timed_work(self, values: Sequence[int], steps: int) -> Work:
        """The work of the timed part, with model and hardware FLOPs by number format."""
        work, plan = self.work_of(values, steps), self._plan
        if plan is None:
            return work
        vector = values[: self._size]

        def formats(passes: str) -> dict[str, int]:
            return {name: whole(flops) for name, flops in plan.evaluate_formats(vector, passes).items()}

        if plan.hardware_unknown:
            return replace(work, formats=formats("training"))
        hardware = None if work.flops is None else whole(plan.evaluate(vector, "hardware"))
        return replace(work, formats=formats("training"), hardware_flops=hardware, hardware_formats=formats("hardware"))

    def _components(self, values: Sequence[int]) -> dict[str, int]:
        if self._plan is None:
            return {}
        priced = self._plan.evaluate_components(values[: self._size])
        return {name: whole(flops) for name, flops in priced.items() if name not in self._unread}

    def interval(self, sums: Sums, totals: Totals) -> Interval:
        """The interval of these sums, with the job's totals at its end."""
        work = self.work_of(sums.work, sums.steps)
        summed = Summed(self._layout, self._place, sums.work, sums.timed, sums.sampled, sums.maxima, self.work_of)
        return Interval(
            work=work,
            timed=self._timed_work(sums.timed, sums.timed_steps),
            seconds=sums.seconds,
            world_size=self._place.world,
            peak=self._peak,
            components={} if work.flops is None else self._components(sums.work),
            total_flops=totals.flops,
            total_tokens=totals.tokens,
            lower_bound=totals.lower_bound,
            overhead_seconds=sums.overhead_seconds,
            measured=self._instruments.measured(summed),
            statistics=dict(zip(self._layout.names[: len(self._layout.statistics)], sums.work, strict=False)),
        )


def pipeline_stages(plan: Plan, place: Place) -> PipelineLayout:
    """The pipeline layout of this job: the number of stages and chunks is the job's, all else is the configuration's."""
    chunks = place.virtual if place.virtual > 1 else None
    return replace(plan.layout, pipeline_model_parallel_size=place.pipeline, virtual_pipeline_model_parallel_size=chunks)


def _stages(plan: Plan | None, place: Place) -> list[Coefficients]:
    """The prices of the pipeline stages; empty if there is one stage, or if it is unknown what they hold."""
    if plan is None or place.pipeline < 2:
        return []
    try:
        return plan.stage_coefficients(pipeline_stages(plan, place))["training"]
    except ConfigError as error:
        if place.is_first:
            logger.warning("the work of pipeline stages is not reported: %s", error)
        return []


def never_read(plan: Plan) -> list[str]:
    """One sentence for each input of a model that is not read from batches: its work is missing in every number."""
    missed: dict[str, list[str]] = {}
    for statistic, component, _ in unit_prices(plan):
        if statistic.over not in READ:
            missed.setdefault(statistic.over, []).append(component)
    return [
        f"work on {over} lengths, which are not read from batches: part or all of {', '.join(dict.fromkeys(components))}"
        for over, components in missed.items()
    ]


def _components_never_read(plan: Plan) -> frozenset[str]:
    """Components none of whose inputs is read from batches: they are left out rather than reported as zero."""
    priced = [(statistic.over in READ, component) for statistic, component, _ in unit_prices(plan)]
    return frozenset({component for _, component in priced} - {component for is_read, component in priced if is_read})
