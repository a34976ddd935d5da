"""The meter of one rank: counts what its batches hold, and turns the sum over all ranks into reports.

What is summed, and when, follows from the calls alone, which follow from the configuration: every rank makes the same
calls at the same steps, whatever data it saw and whether or not it can still count.  A rank that cannot sends zeros
and says so in the vector, so that the collective never waits for it and every rank learns of it.

Nothing here raises but the collective itself: what goes wrong on the way is a failure of this rank, said once.

Life of a step: ``add_batch`` for each micro-batch, ``end_step``; at a log point ``launch(step)``; some time later, when
the sum has arrived, ``poll`` returns a report.  Before a checkpoint ``settle`` brings the totals up to date.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import torch

from bridge.flops.pipeline import Layout
from bridge.flops.plan import Coefficients, Plan
from bridge.flops.shapes import ConfigError
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.batch_statistics import MAX_RANKS, READ, BatchStatistics
from bridge.metrics.instruments import COMPUTE_TIME, Instruments
from bridge.metrics.reduction import CPU, LIMB_BITS, PendingSum, current_group, split
from bridge.metrics.stragglers import ComputeTime, Dimension, is_known, ranked, ratio_to_mean, unranked
from bridge.metrics.throughput import Interval, Work
from bridge.metrics.timing import Clock, IntervalTimer, Lap
from bridge.metrics.totals import Totals, whole

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Replica work is cut off here rather than refused: it only makes a ratio, and 1e24 FLOPs in an interval are far away.
_MOST_WORK = (1 << (2 * LIMB_BITS)) - 1


@dataclass(frozen=True)
class Report:
    """What the job did between two log points.

    Attributes:
        step: the log point.
        interval: the numbers for ``throughput``; None once any rank failed.
    """

    step: int
    interval: Optional[Interval]


@dataclass
class _Launch:
    """A sum on its way, and what its reader needs to know."""

    sum: PendingSum
    segments: int
    steps: int
    timed_steps: int
    report_step: Optional[int]
    lap: Optional[Lap]
    overhead_ns: int

    def arrived(self) -> bool:
        """Whether it can be read without waiting."""
        return self.sum.ready() and (self.lap is None or self.lap.ready())


def warn_of(error: Exception) -> None:
    """Tell the user that this rank stopped counting."""
    logger.warning("throughput: stopped counting on this rank: %s: %s. Training goes on.", type(error).__name__, error)
    logger.debug("the exception", exc_info=error)


class Meter:
    """Counts on one rank, reports for the whole job.

    Args:
        plan: prices the statistics; None: tokens and seconds only.
        contributes: whether this rank speaks for its data-parallel replica.
        replicas, replica: data-parallel size and rank.
        world_size, rank: ranks of the job, and this one.
        dimensions: the parallel dimensions, by which the slowest rank is placed.
        pipeline: pipeline stages.
        layout: what stands on them; None: nobody knows.
        clock: what measures the intervals.
        instruments: what else is measured; a meter's own.
        device: where the collective runs.
        peak_flops: of one device, FLOP/s; None if unknown.
    """

    def __init__(
        self,
        plan: Optional[Plan],
        *,
        clock: Clock,
        contributes: bool = True,
        replicas: int = 1,
        replica: int = 0,
        world_size: int = 1,
        rank: int = 0,
        dimensions: Sequence[Dimension] = (),
        pipeline: int = 1,
        layout: Optional[Layout] = None,
        instruments: Optional[Instruments] = None,
        device: torch.device = CPU,
        peak_flops: Optional[float] = None,
    ) -> None:
        self.plan = plan
        self.contributes = contributes
        self.peak_flops = peak_flops
        self.peaks: Mapping[str, Optional[float]] = {}
        """By number format, where the run has more than one peak; instead of ``peak_flops``."""
        self._replicas, self._replica = replicas, replica
        self._world_size, self._rank, self._dimensions = world_size, rank, tuple(dimensions)
        self._pipeline = pipeline
        self._stages = _stages(plan, layout, say=rank == 0) if pipeline > 1 else []
        self._instruments = instruments or Instruments()
        self._device = device
        self._batch = BatchStatistics(
            plan.statistics if plan else (), replicas=replicas, replica=replica, ranks=world_size, rank=rank
        )
        self.names = self._batch.names
        self._unread = _components_never_read(plan) if plan else frozenset()
        if plan is not None:
            plan.evaluate_components([0] * len(plan.statistics))
            plan.evaluate_formats([0] * len(plan.statistics))  # compiled on first use: not in a step, please
        self.totals = Totals(plan, self.names)
        self._timer = IntervalTimer(clock)
        self.overhead_ns = 0
        """Nanoseconds that the callback spent in the timed part of the interval; its owner adds to it."""
        self.unreported_steps = 0
        """Steps since the last log point; equal on every rank."""
        self._group, self._lost = current_group(), False
        self._failed = False
        self._warned_unread = False
        # On this rank since the last launch.
        self._warm_up: Optional[tuple[list[int], Any]] = None
        self._warm = False
        self._launched = False
        self._steps = self._timed_steps = 0
        self._learned_mark: tuple[int, Any] = (0, None)
        self._own_work: Optional[int] = 0
        """Work of this rank's replica in the timed part of the interval; None: it is on the device."""
        # Over all ranks since the last report.
        self._work, self._timed = self._zeros(), self._zeros()
        self._work_steps = self._timed_steps_done = 0
        self._pending: Optional[_Launch] = None
        self._reports: list[Report] = []

    @property
    def needs_images(self) -> bool:
        """Whether batches are looked through for images."""
        return self._batch.needs_images

    def _zeros(self) -> list[int]:
        return [0] * len(self.names)

    # ---- on this rank ---------------------------------------------------------------------------------------------

    def add_batch(self, batch: Any, waited_ns: int = 0) -> None:
        """Count a micro-batch that this rank's replica is about to compute."""
        self.add_lengths(lambda: read_lengths(batch, images=self.needs_images), waited_ns)

    def add_lengths(self, read: Callable[[], Optional[BatchLengths]], waited_ns: int = 0) -> None:
        """Count the micro-batch whose lengths ``read`` returns; if it raises NoLengths, one that could not be read."""
        if self._failed or not self.contributes:
            return
        try:
            self._batch.count("data_wait_ns", waited_ns)
            if (lengths := read()) is not None:
                self._batch.add(lengths)
        except NoLengths as error:
            self.miss(1, error)
        except Exception as error:
            self.fail(error)

    def miss(self, micro_batches: int, reason: object) -> None:
        """Count micro-batches that could not be read: from here on totals are lower bounds, on every rank."""
        self._batch.count("unread_micro_batches", micro_batches)
        if not self._warned_unread:
            self._warned_unread = True
            logger.warning("not counted: micro-batches whose lengths cannot be read: %s", reason)

    def end_step(self, *, skipped: bool = False) -> None:
        """A step is over. ``skipped``: it changed no weights; its work counts, its tokens are reported apart.

        The first one is warm-up: from here on time is measured.
        """
        was_warm, self._warm = self._warm, True
        self._steps += 1
        self._timed_steps += was_warm
        self.unreported_steps += 1
        self._instruments.end_step()
        self.attempt(lambda: self._close_step(skipped, warm_up=not was_warm))

    def _close_step(self, skipped: bool, *, warm_up: bool) -> None:
        if skipped:
            self._batch.mark_unlearned(self._learned_mark)
        self._learned_mark = self._batch.tokens()
        if warm_up:
            self._warm_up, self._learned_mark = self._batch.drain(), (0, None)
            self.overhead_ns = 0
            self._timer.run()
            self._instruments.run()

    def pause(self) -> None:
        """What comes now is no training: an evaluation, a checkpoint."""
        self._instruments.pause()
        self.attempt(self._timer.pause)

    def resume(self) -> None:
        """Training goes on."""
        if self._warm:
            self.attempt(self._timer.run)
            self._instruments.run()

    def close(self) -> None:
        """No more steps."""
        self._instruments.close()

    def attempt(self, call: Callable[[], T]) -> Optional[T]:
        """What ``call`` returns; if it raises, a failure of this rank, and None."""
        try:
            return call()
        except Exception as error:
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """This rank can not count any more: one warning here, and all ranks learn it at the next sum."""
        if not self._failed:
            self._failed = True
            warn_of(error)

    # ---- over all ranks: every rank calls these at the same steps -------------------------------------------------

    def launch(self, report_step: Optional[int]) -> None:
        """Start to sum what was counted since the last launch; at most one sum is under way.

        Args:
            report_step: the log point this sum completes; None: it only brings the totals up to date.
        """
        self._receive()
        if not self._has_its_group():
            self._lose_group(report_step)
            return
        segments = 1 if self._launched else 2  # the first sum carries the warm-up apart, since no time belongs to it
        self._launched = True
        lap = self.attempt(self._timer.lap) if report_step is not None else None
        readings = self._instruments.lap() if report_step is not None else {}
        payload = None if self._failed else self.attempt(lambda: self._payload(segments, readings))
        limbs, on_device = payload or (self._failure(segments), None)
        maxima = self._maxima(readings.get("compute_ns")) if report_step is not None else ()
        self._pending = _Launch(
            PendingSum(limbs, on_device, maxima=maxima, device=self._device),
            segments,
            self._steps,
            self._timed_steps,
            report_step,
            lap,
            self.overhead_ns,
        )
        self._steps = self._timed_steps = 0
        self._learned_mark = (0, None)
        if report_step is not None:
            self.overhead_ns = self.unreported_steps = 0

    def poll(self, *, wait: bool = False) -> Optional[Report]:
        """The next report that is complete, if any. Does not wait unless told to."""
        if self._pending is not None and (wait or self.attempt(self._pending.arrived)):
            self._receive()
        return self._reports.pop(0) if self._reports else None

    def _has_its_group(self) -> bool:
        """Whether sums still go over the ranks that they went over at the start."""
        return not self._lost and current_group() is self._group

    def _lose_group(self, report_step: Optional[int]) -> None:
        """From here on nobody knows what the other ranks do: no total, rather than this rank's alone."""
        if not self._lost:
            self._lost = True
            self.fail(RuntimeError("the process group that training started with is gone, so ranks cannot be summed"))
        self.totals.complete = False
        self._steps = self._timed_steps = 0
        if report_step is not None:
            self.overhead_ns = self.unreported_steps = 0
            self._reports.append(Report(report_step, None))

    def settle(self) -> None:
        """Bring ``totals`` up to the last step, equally on every rank. Waits for all ranks, as a checkpoint does."""
        if self._steps:
            self.launch(None)
        self._receive()

    # ---- sending --------------------------------------------------------------------------------------------------

    def _payload(self, segments: int, readings: Mapping[str, int]) -> tuple[list[list[int]], Any]:
        """Limbs of the host's and of the device's part; the readings belong to the timed segment, the last."""
        parts = [self._batch.drain()]
        if segments == 2:
            parts.insert(0, self._warm_up or (self._zeros(), None))
            self._warm_up = None
        if self.contributes:
            self._add_own_work(*parts[-1])
            parts = [self._with_replica_work(*part) for part in parts]
        host = parts[-1][0]
        for entry, reading in readings.items():
            host[self._batch.index[entry]] += reading
            host[self._batch.index[f"{entry}_readings"]] += 1
        if self._batch.rank_slot is not None:
            host[self._batch.rank_slot] = readings.get("compute_ns", 0)
        limbs = split([value for host, _ in parts for value in host])
        if all(device is None for _, device in parts):
            return limbs, None
        example = next(device for _, device in parts if device is not None)
        on_device = [torch.zeros_like(example) if device is None else device for _, device in parts]
        return limbs, torch.cat(on_device, dim=1)

    def _failure(self, segments: int) -> list[list[int]]:
        """What a rank sends that cannot count: nothing but this fact."""
        values = self._zeros()
        values[self._batch.index["failures"]] = 1
        return split(values * segments)

    def _with_replica_work(self, host: list[int], device: Any) -> tuple[list[int], Any]:
        """Fill this replica's slot with its FLOPs (without a plan: its tokens)."""
        slot = self._batch.replica_slot
        if slot is None:
            return host, device
        plan = self.plan
        host[slot] = min(self._priced(host), _MOST_WORK)
        if device is not None and plan is not None:
            size = len(plan.statistics)
            unit = 1 << 20  # whole numbers large enough that a rounded FLOP does not matter
            prices = [float(plan.evaluate([unit * (i == j) for j in range(size)])) / unit for i in range(size)]
            amounts = device[0, :size].double() + device[1, :size].double() * 2.0**LIMB_BITS
            weights = torch.tensor(prices, dtype=torch.float64).to(device.device, non_blocking=True)
            work = amounts @ weights  # beyond int64: split before it is made an integer
            high = (work / 2.0**LIMB_BITS).floor()
            device[1, slot], device[0, slot] = high.long(), (work - high * 2.0**LIMB_BITS).long()
        return host, device

    def _priced(self, values: Sequence[int]) -> int:
        """Work of a vector: FLOPs, without a plan tokens."""
        if self.plan is None:
            return values[self._batch.index["tokens"]]
        return whole(self.plan.evaluate(values[: len(self.plan.statistics)]))

    def _add_own_work(self, host: Sequence[int], device: Any) -> None:
        if self._world_size > MAX_RANKS:
            self._own_work = None if device is not None or self._own_work is None else self._own_work + self._priced(host)

    def _maxima(self, compute_ns: Optional[int]) -> Sequence[int]:
        """For jobs of too many ranks for an entry each: who computes longest, which replica has most work."""
        if self._world_size <= MAX_RANKS:
            return ()
        work, self._own_work = self._own_work, 0
        seconds = math.inf if compute_ns is None or self._failed else compute_ns / 1e9
        return ranked(seconds, self._rank), ranked(math.inf if work is None else float(min(work, _MOST_WORK)), self._replica)

    # ---- receiving ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take in the sum that is under way, if any; waits for it."""
        launch, self._pending = self._pending, None
        if launch is None:
            return
        try:
            summed = launch.sum.wait()
        except Exception:
            if self._has_its_group():
                raise  # the job itself is in trouble
            self._lose_group(launch.report_step)
            return
        width = len(self.names)
        segments = [summed[start : start + width] for start in range(0, launch.segments * width, width)]
        for segment in segments:
            self.totals.add(segment)
            self._work = _add(self._work, segment)
        self._timed = _add(self._timed, segments[-1])
        self._work_steps += launch.steps
        self._timed_steps_done += launch.timed_steps
        if self._work[self._batch.index["failures"]]:
            self.totals.complete = False
        if launch.report_step is not None:
            report = self.attempt(lambda: self._report(launch))
            self._reports.append(report or Report(launch.report_step, None))
            self._work, self._timed = self._zeros(), self._zeros()
            self._work_steps = self._timed_steps_done = 0

    def _report(self, launch: _Launch) -> Report:
        assert launch.report_step is not None
        if not self.totals.complete or launch.lap is None:
            return Report(launch.report_step, None)
        work, timed = self._work, self._timed
        components: dict[str, int] = {}
        done = self._work_of(work, self._work_steps)
        if self.plan is not None and done.flops is not None:
            priced = self.plan.evaluate_components(work[: len(self.plan.statistics)])
            components = {name: whole(flops) for name, flops in priced.items() if name not in self._unread}
        timed_work = self._work_of(timed, self._timed_steps_done)
        interval = Interval(
            work=done,
            timed=timed_work,
            seconds=launch.lap.seconds(),
            world_size=self._world_size,
            peak_flops=self.peak_flops,
            peaks=self.peaks,
            components=components,
            total_flops=self.totals.flops,
            total_tokens=self.totals.tokens,
            lower_bound=self.totals.lower_bound,
            overhead_seconds=launch.overhead_ns / 1e9,
            compute=self._instruments.attempt(COMPUTE_TIME, lambda: self._compute_time(timed, timed_work, launch.sum.maxima())),
            joules=self._joules(timed),
        )
        return Report(launch.report_step, interval)

    def _work_of(self, values: Sequence[int], steps: int) -> Work:
        plan, index = self.plan, self._batch.index
        vector = values[: len(plan.statistics)] if plan else []
        stages = [whole(stage.dot(vector)) for stage in self._stages]
        unread = values[index["unread_micro_batches"]]
        unknown = unread > 0 and not values[index["micro_batches"]]

        def formats(passes: str) -> dict[str, int]:
            return {name: whole(flops) for name, flops in plan.evaluate_formats(vector, passes).items()} if plan else {}

        return Work(
            steps=steps,
            flops=None if plan is None or unknown else whole(plan.evaluate(vector)),
            hardware_flops=None if plan is None or unknown or plan.hardware_unknown else whole(plan.evaluate(vector, "hardware")),
            formats=formats("training"),
            hardware_formats={} if plan is None or plan.hardware_unknown else formats("hardware"),
            tokens=None if unknown else values[index["tokens"]],
            positions=values[index["positions"]],
            sequences=values[index["sequences"]],
            unlearned_tokens=values[index["unlearned_tokens"]],
            unread_micro_batches=unread,
            data_wait_seconds=values[index["data_wait_ns"]] / 1e9 / self._replicas,
            replica_work=[] if unread else [values[position] for position in self._batch.replica_slots],
            stage_work=stages,
        )

    def _everyone_read(self, timed: Sequence[int], entry: str) -> bool:
        return timed[self._batch.index[f"{entry}_readings"]] == self._world_size

    def _joules(self, timed: Sequence[int]) -> Optional[float]:
        """Energy of all devices; unknown as soon as one of them is."""
        return timed[self._batch.index["energy_mj"]] / 1e3 if self._everyone_read(timed, "energy_mj") else None

    def _compute_time(self, timed: Sequence[int], work: Work, maxima: Sequence[int]) -> Optional[ComputeTime]:
        """The slowest rank and the factors of its excess; unknown as soon as one rank's time is."""
        if not self._everyone_read(timed, "compute_ns"):
            return None
        mean = timed[self._batch.index["compute_ns"]] / self._world_size / 1e9
        if maxima:
            slowest, rank = unranked(maxima[0])
        else:
            seconds = [timed[slot] / 1e9 for slot in self._batch.rank_slots] or [mean]
            slowest, rank = max((value, index) for index, value in enumerate(seconds))
        place = {dimension.name: dimension.index(rank) for dimension in self._dimensions}
        data: Optional[float] = 1.0
        at_most = self._replicas > 1 and not self._batch.replica_slots
        if self._replicas > 1 and work.unread_micro_batches:
            data = None
        elif at_most:
            heaviest, replica = unranked(maxima[1])
            total = work.tokens if work.flops is None else work.flops
            data = heaviest * self._replicas / total if total and is_known(heaviest) else None
            at_most = replica != place.get("data_parallel")
        elif self._replicas > 1:
            data = ratio_to_mean(work.replica_work, place.get("data_parallel", 0))
        stage: Optional[float] = 1.0
        if self._pipeline > 1:
            stage = ratio_to_mean(work.stage_work, place.get("pipeline", 0)) if work.stage_work else None
        return ComputeTime(
            mean=mean, slowest=slowest, rank=rank, place=place, data=data, stage=stage, at_most=at_most and data is not None
        )


def _add(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _stages(plan: Optional[Plan], layout: Optional[Layout], *, say: bool) -> list[Coefficients]:
    """What prices the pipeline stages; none if it is not known what stands on them."""
    if plan is None or layout is None:
        return []
    try:
        return plan.stage_coefficients(layout)["training"]
    except ConfigError as error:
        if say:
            logger.warning("the work of pipeline stages is not reported: %s", error)
        return []


def never_read(plan: Plan) -> list[str]:
    """Inputs of a model that batches are not read for, one sentence each: their work is missing in every number."""
    missed: dict[str, list[str]] = {}
    for over, component in _parts(plan):
        if over not in READ:
            missed.setdefault(over, []).append(component)
    return [
        f"work on {over} lengths, which are not read from batches: part or all of {', '.join(dict.fromkeys(components))}"
        for over, components in missed.items()
    ]


def _components_never_read(plan: Plan) -> frozenset[str]:
    """Components of which nothing is read: they have no number, rather than zero."""
    parts = _parts(plan)
    return frozenset({component for _, component in parts} - {component for over, component in parts if over in READ})


def _parts(plan: Plan) -> list[tuple[str, str]]:
    """What each component's work is summed over."""
    size = len(plan.statistics)
    return [
        (statistic.over, component)
        for position, statistic in enumerate(plan.statistics)
        for component, flops in plan.evaluate_components([int(i == position) for i in range(size)]).items()
        if flops
    ]
