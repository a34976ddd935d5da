"""The meter of one rank: counts what its batches hold, and sums it over all ranks.

What is summed, and when, follows from the calls alone, and these follow from the configuration: every rank makes the same calls
at the same steps, whatever data it saw and whether or not it can still count.  A rank that cannot count sends zeros and a flag in
the vector, so that the collective never waits for it and every rank learns of it.  The vector contains the step too, so that sums
of different steps, or of other ranks than at the start, are detected and named.

Only the collective itself can raise: any other error is a failure of this rank, reported once.

The life of a step is ``start_step``, ``add_batch`` for each micro-batch, ``end_step``.  At a log point ``cut(step)`` makes the
vector in a thread beside the next step, at whose end the sum starts; once it has arrived, ``poll`` returns a report.
``launch(step)`` starts the sum at once.  Before a checkpoint ``settle`` brings the totals up to date.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from bridge.flops.plan import Plan
from bridge.flops.statistics import Statistic
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.batch_statistics import BatchStatistics
from bridge.metrics.beside import Beside
from bridge.metrics.instruments import Instruments
from bridge.metrics.interval import Intervals, Sums
from bridge.metrics.peak import UNKNOWN, Peak
from bridge.metrics.place import Place
from bridge.metrics.reduction import CPU, LIMB_BITS, PendingSum, integers, to_limbs
from bridge.metrics.snapshots import Snapshots
from bridge.metrics.stragglers import ranked
from bridge.metrics.throughput import Interval
from bridge.metrics.timing import Clock, HostClock, IntervalTimer, Lap
from bridge.metrics.totals import Totals
from bridge.metrics.vector import HEAVIEST, RANKS, REPLICA_WORK, SQUARED_STEP, STEP, VectorLayout

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Replica work is limited to this rather than refused: it only enters a ratio, and 1e24 FLOPs per interval are far away.
_MOST_WORK = (1 << (2 * LIMB_BITS)) - 1


@dataclass(frozen=True)
class Report:
    """What the job did between two log points.

    Attributes:
        step: the log point.
        price: computes the interval; None once any rank has failed.
    """

    step: int
    price: Callable[[], Interval | None] | None = None

    @functools.cached_property
    def interval(self) -> Interval | None:
        """The input of ``throughput``, computed on first access, in any thread; None if there is none."""
        return self.price and self.price()


@dataclass(frozen=True)
class _Cut:
    """What was counted up to a step, with what is needed to interpret its sum."""

    parts: Mapping[str, BatchStatistics]
    waited_ns: int
    step: int
    steps: int
    timed_steps: int
    report_step: int | None
    lap: Lap | None
    overhead_ns: int
    failed: bool


@dataclass(frozen=True)
class _Packed:
    """The vector of a cut, ready to be summed."""

    cut: _Cut
    limbs: torch.Tensor
    on_device: Any
    maxima: torch.Tensor


@dataclass(frozen=True)
class _Launch:
    """A sum that is under way."""

    sum: PendingSum
    of: _Cut

    def is_there(self) -> bool:
        """Whether it can be read without waiting."""
        return self.sum.ready() and (self.of.lap is None or self.of.lap.ready())


@dataclass(frozen=True)
class _Arrived:
    """The sum of a cut over all ranks, by part."""

    cut: _Cut
    parts: Mapping[str, list[int]]


def warn_of(error: Exception) -> None:
    """Warn the user that this rank stopped counting."""
    logger.warning("throughput: stopped counting on this rank: %s: %s. Training goes on.", type(error).__name__, error)
    logger.debug("the exception", exc_info=error)


#: Parts of the vector: the work of the warm-up, which is not timed, of sampled steps, and of all others.
_WARM_UP, _SAMPLED, _OTHER = "warm-up", "sampled", "other"


class Meter:
    """Counts on one rank, reports for the whole job.

    Args:
        plan: prices the statistics; None: tokens and seconds only.
        place: place of this process; the sums go over its group. None: it is alone.
        clock: measures the intervals.
        instruments: what else is measured; no other meter may use them.
        device: where the collective runs.
        peak: peak of one device.
        beside: statistics that are summed in addition to the plan's.
    """

    def __init__(
        self,
        plan: Plan | None,
        place: Place | None = None,
        clock: Clock | None = None,
        instruments: Instruments | None = None,
        device: torch.device = CPU,
        peak: Peak = UNKNOWN,
        beside: Sequence[Statistic] = (),
    ) -> None:
        self.plan = plan
        self.place = place = place or Place()
        self._instruments = instruments or Instruments()
        self._device = device
        self.layout = layout = VectorLayout((*(plan.statistics if plan else ()), *beside), place, self._instruments.slices)
        self._intervals = Intervals(plan, place, layout, self._instruments, peak)
        self._counted, self._spare = self._parts(), self._parts()
        self._every = self._instruments.every if self._instruments.samples else 0
        self._block, self._sampled_at = range(0), 0
        self._part, self._batch = _WARM_UP, self._counted[_WARM_UP]
        self.needs_images = self._batch.needs_images
        """Whether batches are searched for images."""
        self._snapshots = Snapshots(images=self.needs_images)
        self.totals = Totals(plan, layout)
        self._timer = IntervalTimer(clock or HostClock())
        self.overhead_ns = 0
        """Nanoseconds that the callback spent in the timed part of the interval; the callback adds to it."""
        self.unreported_steps = 0
        """Steps since the last log point; equal on every rank."""
        self._failed = self._lost = self._warned_unread = False
        # On this rank since the last launch.
        self._step = 0
        self._warm = self._launched = self._paused = False
        self._steps = self._timed_steps = 0
        self._waited_ns = 0
        self._own_work: int | None = 0
        """Work of this rank's replica, from which the heaviest is found; None if only the device knows it."""
        self._packer = Beside(self._pack, "sums of throughput")
        self._packed: _Packed | None = None
        """The vector whose sum starts at the end of this step."""
        self._pending: _Launch | None = None
        self._arrived: list[_Arrived] = []
        """Sums that arrived since the last report."""
        self._reports: list[Report] = []

    def _parts(self) -> dict[str, BatchStatistics]:
        names = (_WARM_UP, _OTHER, _SAMPLED) if self._instruments.samples else (_WARM_UP, _OTHER)
        return {name: BatchStatistics(self.layout) for name in names}

    # ---- on this rank ---------------------------------------------------------------------------------------------

    def add_batch(self, batch: Any, waited_ns: int = 0) -> None:
        """Count a micro-batch that this rank's replica is about to compute; its loader took ``waited_ns`` nanoseconds."""
        if self._failed or not self.place.contributes:
            return
        try:
            kept = self._snapshots.of(batch)
        except Exception:  # reading it will raise the same error
            kept = None
        if kept is None:
            self.add_lengths(lambda: read_lengths(batch, images=self.needs_images), waited_ns)
            return
        self._waited_ns += waited_ns
        try:
            self._batch.keep(kept)
        except Exception as error:
            self.fail(error)

    def add_lengths(self, read: Callable[[], BatchLengths | None], waited_ns: int = 0) -> None:
        """Count the micro-batch whose lengths ``read`` returns; if ``read`` raises NoLengths, an unread one."""
        if self._failed or not self.place.contributes:
            return
        try:
            self._waited_ns += waited_ns
            if (lengths := read()) is None:
                return
            if lengths.on_host:
                self._batch.keep(lengths)
            else:
                self._batch.add(lengths)
        except NoLengths as error:
            self.miss(1, error)
        except Exception as error:
            self.fail(error)

    def miss(self, micro_batches: int, reason: object) -> None:
        """Count micro-batches that could not be read: from here on totals are lower bounds, on every rank."""
        self._batch.count("unread_micro_batches", micro_batches)
        self._tell_unread(reason)

    def _tell_unread(self, reason: object) -> None:
        if not self._warned_unread:
            self._warned_unread = True
            logger.warning("not counted: micro-batches whose lengths cannot be read: %s", reason)

    def start_step(self) -> None:
        """A step begins; the clock resumes if it was paused."""
        if self._paused:
            self.resume()
        if self._part is _SAMPLED:
            self._instruments.start_sample()

    def end_step(self, step: int | None = None, *, skipped: bool = False) -> None:
        """A step is over. The first one is warm-up: time is measured from its end on.

        Args:
            step: the host's number of the step; None: one more than the last.
            skipped: it changed no weights; its work counts, its tokens are reported separately.
        """
        if self._packed is not None or self._packer.open:
            self._send()
        was_warm, self._warm = self._warm, True
        self._step = self._step + 1 if step is None else step
        self._steps += 1
        self._timed_steps += was_warm
        self.unreported_steps += 1
        self._instruments.end_step(sampled=self._part is _SAMPLED)
        try:
            self._close_step(skipped, warm_up=not was_warm)
        except Exception as error:
            self.fail(error)

    def _close_step(self, skipped: bool, *, warm_up: bool) -> None:
        if self._instruments.counting:
            self._instruments.add_counts(self._batch, skipped=skipped)
        if skipped:
            self._batch.mark_unlearned()
        # Batches that are taken from here on belong to the next step.
        self._part = _SAMPLED if self._is_sampled(self._step + 1) else _OTHER
        self._batch = self._counted[self._part]
        self._batch.begin_step()
        if warm_up:
            self.overhead_ns, self._waited_ns = -self._instruments.overhead_ns, 0
            self.resume()

    def _is_sampled(self, step: int) -> bool:
        """Whether a step is the sampled one of its block of ``every`` steps; the block alone decides, so all ranks agree."""
        if not self._every:
            return False
        if step not in self._block:
            block = (step - 1) // self._every
            self._block = range(block * self._every + 1, (block + 1) * self._every + 1)
            # Neither the first, which may be warm-up, nor the last, which a device may not have finished at the log point.
            self._sampled_at = self._block[1 + _mixed(block) % max(1, self._every - 2)]
        return step == self._sampled_at

    def pause(self) -> None:
        """Training pauses, for an evaluation or a checkpoint."""
        self._join()
        self._paused = True
        self._instruments.pause()
        self.attempt(self._timer.pause)

    def resume(self) -> None:
        """Training continues."""
        if self._warm:
            self._paused = False
            self.attempt(self._timer.run)
            self._instruments.run()

    def close(self) -> None:
        """No more steps."""
        self._join()
        self._packer.close()
        self._instruments.close()

    def attempt(self, call: Callable[[], T]) -> T | None:
        """The result of ``call``; if it raises, None, and this rank has failed."""
        try:
            return call()
        except Exception as error:
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """This rank cannot count any more: it warns once, and all ranks learn of it from the next sum."""
        if not self._failed:
            self._failed = True
            warn_of(error)

    # ---- over all ranks: every rank calls these at the same steps -------------------------------------------------

    def cut(self, report_step: int | None) -> None:
        """Close the counts for one sum. The vector is made beside the next step, and the sum starts at the end of that step.

        Args:
            report_step: the log point that the sum completes; None: it only brings the totals up to date.
        """
        cut = self._cut(report_step)
        if any(part.device_values is not None for part in cut.parts.values()):
            self._packed = self._pack(cut)  # in this thread, whose stream computes them
        else:
            self._packer.put(cut)

    def launch(self, report_step: int | None) -> None:
        """Close the counts for one sum, and start the sum at once."""
        self._packed = self._pack(self._cut(report_step))
        self._send()

    def _cut(self, report_step: int | None) -> _Cut:
        self._send()
        parts = {name: part for name, part in self._counted.items() if name is not _WARM_UP or not self._launched}
        cut = _Cut(
            parts=parts,
            waited_ns=self._waited_ns,
            step=self._step,
            steps=self._steps,
            timed_steps=self._timed_steps,
            report_step=report_step,
            lap=self.attempt(self._timer.lap) if report_step is not None else None,
            overhead_ns=self.overhead_ns + self._instruments.overhead_ns,
            failed=self._failed,
        )
        self._launched = True
        self._counted, self._spare = self._spare, self._counted
        self._batch = self._counted[self._part]
        self._waited_ns = self._steps = self._timed_steps = 0
        if report_step is not None:
            self.unreported_steps = 0
            self.overhead_ns = -self._instruments.overhead_ns  # which only grows
        return cut

    def _send(self) -> None:
        """Start the sum of the last cut, if it has not started; at most one sum is under way."""
        self._join()
        packed, self._packed = self._packed, None
        if packed is None:
            return
        self._receive()
        if self._lost or not self.place.holds():
            self._lose("the process group that training started with is gone, so ranks cannot be summed", packed.cut.report_step)
            return
        started = PendingSum(packed.limbs, packed.on_device, maxima=packed.maxima, device=self._device, group=self.place.group)
        self._pending = _Launch(started, packed.cut)

    def _join(self) -> None:
        """Wait for the vector that another thread is making, if any; until then the instruments belong to that thread."""
        for packed in self._packer.results():
            self._packed = packed

    @property
    def awaits(self) -> bool:
        """Whether a report is complete, or a sum is under way."""
        return self._pending is not None or bool(self._reports)

    def poll(self, *, wait: bool = False) -> Report | None:
        """The next complete report, if any; ``wait``: wait for the sum that is under way."""
        if wait:
            self._send()
        if self._pending is not None and (wait or self.attempt(self._pending.is_there)):
            self._receive()
        return self._reports.pop(0) if self._reports else None

    def hurry(self) -> None:
        """Start the sum of the last cut although the next step will not end; only where no other rank takes part."""
        if self.place.world == 1:
            self._send()

    def settle(self) -> None:
        """Bring ``totals`` up to the last step, on every rank. Waits for all ranks, as a checkpoint does."""
        if self._steps:
            self.launch(None)
        self._send()
        self._receive()

    def _lose(self, why: str, report_step: int | None) -> None:
        """The other ranks cannot be summed any more: there is no total from here on, rather than this rank's alone."""
        if not self._lost:
            self._lost = True
            self.fail(RuntimeError(why))
        self.totals.complete = False
        if report_step is not None:
            self._reports.append(Report(report_step))

    # ---- sending --------------------------------------------------------------------------------------------------

    def _pack(self, cut: _Cut) -> _Packed:
        """The vector that this rank sends; runs in any thread."""
        readings = self._instruments.lap() if cut.report_step is not None else {}
        payload = None if cut.failed else self.attempt(lambda: self._payload(cut, readings))
        limbs, on_device = payload or (self._failure(cut), None)
        maxima = self._maxima(readings, counted=payload is not None) if cut.report_step is not None else ()
        return _Packed(cut, limbs, on_device, integers(maxima))

    def _payload(self, cut: _Cut, readings: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        """Limbs of the counts on the host and on the device; the readings join the timed part."""
        drained = {name: part.drain() for name, part in cut.parts.items()}
        if self.place.contributes:
            self._add_own_work(drained)
            for host, device in drained.values():
                self._add_replica_work(host, device)
        for part in cut.parts.values():
            if part.unread is not None:
                self._tell_unread(part.unread)
        host = drained[_OTHER][0]
        host[self.layout.index["data_wait_ns"]] += cut.waited_ns
        self._add_pairing(host, cut.step)
        for name, reading in readings.items():
            if self.layout.is_summed(name):
                self.layout.add(host, name, reading)
        limbs = to_limbs([value for host, _ in drained.values() for value in host])
        devices = [device for _, device in drained.values()]
        if all(device is None for device in devices):
            return limbs, None
        example = next(device for device in devices if device is not None)
        return limbs, torch.cat([torch.zeros_like(example) if device is None else device for device in devices], dim=1)

    def _add_pairing(self, values: list[int], step: int) -> None:
        index = self.layout.index
        values[index[STEP]], values[index[SQUARED_STEP]], values[index[RANKS]] = step, step**2, 1

    def _failure(self, cut: _Cut) -> torch.Tensor:
        """The vector of a rank that cannot count: this fact and the step alone."""
        vectors = {part: self.layout.zeros() for part in cut.parts}
        vectors[_OTHER][self.layout.index["failures"]] = 1
        self._add_pairing(vectors[_OTHER], cut.step)
        return to_limbs([value for vector in vectors.values() for value in vector])

    def _add_replica_work(self, host: list[int], device: Any) -> None:
        """Fill this replica's entry with its FLOPs (without a plan: its tokens)."""
        slots = self.layout.range(REPLICA_WORK)
        if not slots:
            return
        slot, plan = slots[self.place.replica], self.plan
        host[slot] = min(self._intervals.priced(host), _MOST_WORK)
        if device is not None and plan is not None:
            size = len(plan.statistics)
            unit = 1 << 20  # whole numbers large enough that a rounded FLOP does not matter
            prices = [float(plan.evaluate([unit * (i == j) for j in range(size)])) / unit for i in range(size)]
            amounts = device[0, :size].double() + device[1, :size].double() * 2.0**LIMB_BITS
            weights = torch.tensor(prices, dtype=torch.float64).to(device.device, non_blocking=True)
            work = amounts @ weights  # may exceed int64: split before it becomes an integer
            high = (work / 2.0**LIMB_BITS).floor()
            device[1, slot], device[0, slot] = high.long(), (work - high * 2.0**LIMB_BITS).long()

    def _add_own_work(self, drained: Mapping[str, tuple[Sequence[int], Any]]) -> None:
        """Add the work of the steps in which compute time is taken."""
        if HEAVIEST not in self.layout or self._own_work is None:
            return
        host, device = drained[_SAMPLED if _SAMPLED in drained else _OTHER]
        self._own_work = None if device is not None else self._own_work + self._intervals.priced(host)

    def _maxima(self, readings: Mapping[str, Any], *, counted: bool) -> Sequence[int]:
        """This rank's entries for the maxima."""
        values = [0] * len(self.layout.maxima)
        if HEAVIEST in self.layout:
            work, self._own_work = self._own_work, 0
            known = float(min(work, _MOST_WORK)) if counted and work is not None else math.inf
            readings = {**readings, HEAVIEST: ranked(known, self.place.replica)}
        for name, reading in readings.items():
            if not self.layout.is_summed(name):
                self.layout.add(values, name, reading)
        return values

    # ---- receiving ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Wait for the sum that is under way, if any, and add it to the totals."""
        launch, self._pending = self._pending, None
        if launch is None:
            return
        cut = launch.of
        try:
            summed = launch.sum.wait()
        except Exception:
            if self.place.holds():
                raise  # the job itself is in trouble
            self._lose("the process group was destroyed while ranks were summed", cut.report_step)
            return
        width = len(self.layout.names)
        parts = {part: summed[start * width : (start + 1) * width] for start, part in enumerate(cut.parts)}
        if why := self._mispaired(parts[_OTHER], cut.step):
            self._lose(why, cut.report_step)
            return
        for values in parts.values():
            self.totals.add(values)
        if parts[_OTHER][self.layout.index["failures"]]:
            self.totals.complete = False
        self._arrived.append(_Arrived(cut, parts))
        if cut.report_step is not None:
            self._reports.append(Report(cut.report_step, self._pricing(launch)))
            self._arrived = []

    def _mispaired(self, values: Sequence[int], step: int) -> str:
        """Why this is not the sum of all ranks at this step; empty if it is: then the sum of (their step - step)^2 is 0."""
        index = self.layout.index
        ranks = values[index[RANKS]]
        if ranks != self.place.world:
            return f"{ranks} ranks were summed, and training started with {self.place.world}"
        if values[index[SQUARED_STEP]] - 2 * step * values[index[STEP]] + ranks * step**2:
            mean = values[index[STEP]] / ranks
            return f"the sum of step {step} met sums of other steps (their mean is {mean:g}): ranks logged at different steps"
        return ""

    def _pricing(self, launch: _Launch) -> Callable[[], Interval | None] | None:
        """A function that computes the interval from the sums so far, however late it is called; None without totals."""
        lap = launch.of.lap
        if not self.totals.complete or lap is None:
            return None
        arrived, totals = self._arrived, copy.copy(self.totals)

        def summed(*parts: str) -> list[int]:
            vectors = (one.parts[part] for one in arrived for part in parts if part in one.parts)
            return [sum(entries) for entries in zip(self.layout.zeros(), *vectors, strict=True)]

        def price() -> Interval:
            timed = summed(_SAMPLED, _OTHER)
            sums = Sums(
                work=summed(_WARM_UP, _SAMPLED, _OTHER),
                timed=timed,
                sampled=summed(_SAMPLED) if self._instruments.samples else timed,
                maxima=launch.sum.maxima(),
                steps=sum(one.cut.steps for one in arrived),
                timed_steps=sum(one.cut.timed_steps for one in arrived),
                seconds=lap.seconds(),
                overhead_seconds=launch.of.overhead_ns / 1e9,
            )
            return self._intervals.interval(sums, totals)

        return lambda: self.attempt(price)


def _mixed(number: int) -> int:
    """A pseudorandom number that is the same on every rank."""
    return (number * 0x9E3779B97F4A7C15 >> 29) & 0xFFFF
