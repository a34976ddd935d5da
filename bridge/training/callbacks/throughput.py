"""Reports how many FLOPs really ran and how fast: see docs for the logged keys.

In our loop, three lines of a recipe::

    callbacks:
      - _target_: bridge.training.callbacks.ThroughputCallback
        convention: megatron

In another loop with Megatron-Bridge's events, two lines: register the object, and pass the training data iterator
through ``observe``.

The callback is thin: it hands batches to a :class:`~bridge.metrics.meter.Meter` and its reports to the trackers.  An
exception inside it is one warning and the end of the numbers, never of the run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter_ns, time
from typing import Any

import torch

from bridge.flops import ConfigError, compile_plan, conventions
from bridge.flops.choices import Choice
from bridge.flops.formats import UNKNOWN, Formats
from bridge.flops.formats import read as read_formats
from bridge.flops.plan import Plan
from bridge.flops.projected import projected
from bridge.flops.reading import get, model_of, read
from bridge.flops.routed import expert_layers, routed
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.batch_statistics import READ
from bridge.metrics.beside import Beside
from bridge.metrics.dealt import FIELD, is_dealer, own_batches, place_of_dealt
from bridge.metrics.energy import Energy
from bridge.metrics.expert_shares import ExpertShares, shares_of
from bridge.metrics.experts import Experts
from bridge.metrics.facts import INCOMPLETE, Known, constants
from bridge.metrics.goodput import Job
from bridge.metrics.host import Host, host_of
from bridge.metrics.instruments import COMPUTE_TIME, Instruments, Measurement
from bridge.metrics.interval import never_read
from bridge.metrics.memory import MemoryPeaks
from bridge.metrics.meter import Meter, Report, warn_of
from bridge.metrics.observed import are_chunks, observed
from bridge.metrics.optimizer import OptimizerWork
from bridge.metrics.peak import DevicePeak, Peak, device_peak
from bridge.metrics.place import Place, check_dimensions, find_place
from bridge.metrics.prices import price_lists
from bridge.metrics.reduction import collective_device
from bridge.metrics.reruns import RerunCounter, Reruns, is_replayed, may_replay, may_rerun
from bridge.metrics.run_summary import RunSummary
from bridge.metrics.sharing import shared_batches
from bridge.metrics.stragglers import ComputeTime, ComputeTimes
from bridge.metrics.throughput import TERA, doubts, throughput
from bridge.metrics.time_marks import Times
from bridge.metrics.timing import Clock, CudaClock, HostClock
from bridge.metrics.totals import Totals
from bridge.metrics.trackers import JsonlTracker, Trackers
from bridge.training.callbacks.events import Callback, CallbackContext
from bridge.training.job.host_ledger import HostLedger
from bridge.training.optimizer_work import multiplies_matrices, step_flops
from bridge.training.routing import Routing, find_routing
from bridge.training.trainable import Built, built_over_stages, trainable_from
from bridge.training.verify import Verified, by_trace, compare, traced_plan

logger = logging.getLogger(__name__)

#: Keys of ``context.user_state`` where other callbacks find the constants of the run, the newest rows by step, and at the end
#: the run's medians and totals.
FACTS, ROWS, SUMMARY = "throughput/facts", "throughput/rows", "throughput/summary"
_ROWS_KEPT = 4
_MAKES_ROWS = "rows of throughput"
_EARLY_KEPT = 1024


#: Log intervals in which the sums of a log point start in its own step, not in the next one.
_DENSE = range(1, 5)

#: Compute time is taken in one step of so many.
COMPUTE_TIME_EVERY = 10

_Hook = Callable[["ThroughputCallback", CallbackContext], None]


def _hook(method: _Hook) -> _Hook:
    """An event: timed, and its exceptions kept from the training loop."""

    @functools.wraps(method)
    def guarded(self: ThroughputCallback, context: CallbackContext) -> None:
        start = perf_counter_ns()
        try:
            method(self, context)
        except Exception as error:
            self.fail(error)
        meter = self._meter
        if meter is not None:
            meter.overhead_ns += perf_counter_ns() - start

    return guarded


class Verify(Choice):
    """What the built model is asked."""

    PARAMETERS = "parameters"
    TRACE = "trace"
    USE = "use"


class ThroughputCallback(Callback):
    """Exact FLOPs, MFU and token rates, summed over all ranks once per log interval.

    Args:
        convention: how FLOPs are counted: ``megatron``, ``maxtext``, ``exact`` or ``executed``.
        log_interval: steps between log points; None: the loop's.
        peak_flops: dense peak of one device in FLOP/s; None: ``cfg.hardware.peak_flops``, else the table of devices.
        metrics_file: JSON lines for loops without trackers of their own; ours has ``logger.metrics_file``.
        verify: what the built model is asked: its ``parameters``; with ``trace`` its FLOPs too, by running it without memory;
            with ``use`` the traced plan takes over.
        read: from a micro-batch to a mapping with ``input_ids``, ``cu_seqlens``, ...; None: it is one, or another form that
            :mod:`bridge.metrics.batch_lengths` knows.
        mesh: a DeviceMesh of the ranks that train together, where megatron-core does not say how they divide the work; this and
            the next three are those of :func:`bridge.metrics.place.find_place`.
        data_parallel: its dimensions along which batches differ, or a process group of ranks whose batches differ.
        contributes: whether this rank speaks for its batches.
        process_group: the ranks that train together; None: all of the job.
        compute_time: it is taken in one step of so many, or somewhat more, so that each interval has one; False: not at all.
        energy: whether NVML is read.
        optimizer_in_mfu: the matrix products of an optimizer (Muon, SOAP) count as model FLOPs in MFU; in HFU they always do.
        detail: of where the seconds of a step go: 0: nothing; 1: waiting for data in every step, all else in the steps that
            compute time is taken in; 2: all in every step.
        memory: whether the memory of the fullest rank is.
        ledger: folder where the life of the job is kept over restarts (``job.jsonl``), the same on every rank; for loops that
            are not ours, which keeps its own. None: nowhere.

    Raises:
        ConfigError: an unknown convention, an interval that is not positive, dimensions that the mesh has not.
    """

    def __init__(
        self,
        convention: str = "megatron",
        log_interval: int | None = None,
        peak_flops: float | None = None,
        metrics_file: str | None = None,
        read: Callable[[Any], Any] | None = None,
        *,
        mesh: Any = None,
        data_parallel: Any = None,
        contributes: bool | None = None,
        process_group: Any = None,
        compute_time: int = COMPUTE_TIME_EVERY,
        energy: bool = True,
        optimizer_in_mfu: bool = False,
        detail: int = 1,
        memory: bool = True,
        verify: str = "parameters",
        ledger: str | None = None,
    ) -> None:
        conventions.get(convention)
        self._verify = Verify(verify)
        if log_interval is not None and log_interval < 1:
            raise ConfigError(f"log_interval={log_interval} must be at least 1 step")
        if compute_time < 0:
            raise ConfigError(f"compute_time={compute_time} must be a number of steps, or false")
        check_dimensions(mesh, data_parallel)
        self.convention = convention
        self._summary = RunSummary()
        self._job, self._keeps_job = HostLedger(ledger), ledger is not None
        self.job: Job | None = None
        """The life of the job, once training is over, on the last rank; None without ``ledger``."""
        self.latest: dict[str, Any] = {}
        """The newest row, equal on every rank in all that is counted; empty before the first."""
        self.verified = Verified()
        """What the built model said of the plan; before training starts, nothing."""
        self._log_interval = log_interval
        self._peak_flops = peak_flops
        self._metrics_file = metrics_file
        self._find_place = functools.partial(find_place, mesh, data_parallel, contributes, process_group)
        self._said_to_contribute = contributes
        if detail not in (0, 1, 2):
            raise ConfigError(f"detail={detail} must be 0, 1 or 2")
        self._compute_time, self._energy, self._optimizer_in_mfu = compute_time, energy, optimizer_in_mfu
        self._detail = detail
        self._memory = memory
        self._host: Host | None = None
        self._place: Place | None = None
        self._meter: Meter | None = None
        self._reruns: RerunCounter | None = None
        """Where megatron-core may run iterations again."""
        self._read = read
        self._early: list[tuple[Callable[[], BatchLengths | None], int]] = []
        """Lengths of micro-batches that were taken before training started; of the first ``_EARLY_KEPT``."""
        self._lost = 0
        """How many came after these."""
        self._rows = Beside(self._row, _MAKES_ROWS)
        self._facts: dict[str, Any] = {}
        self._restored: Mapping[str, Any] | None = None
        self._trackers, self._own_trackers = Trackers(), Trackers()
        self._step = self._hosts_step = 0
        self._evaluating = False
        self._aside = False
        """Whether batches are not read as they pass."""
        self._waits = False
        """Whether the time spent waiting for batches is seen: through ``observe``, not through ``count``."""
        self._failed = False
        self._reported_failure = False
        self._doubted = False
        self._stragglers: set[tuple[str, int | None]] = set()
        """What was told about slow ranks."""
        self._all_parameters: int | None = None
        """Where some are frozen."""

    # ---- data -----------------------------------------------------------------------------------------------------

    def observe(self, data_iterator: Any) -> Any:
        """The same iterator or iterable, its batches counted as they pass, untouched: see :mod:`bridge.metrics.observed`.

        Under virtual pipelining pass the list of iterators, one per model chunk: each chunk sees every batch, so the
        first one's iterator is counted. (A list of anything else is a list of batches.) Wrap what the schedule itself
        takes batches from: a prefetcher around the result would run ahead of the steps. The workers of a DataLoader do
        not, wherever they fetch: a batch counts when it is taken. Ranks that do not contribute get back what they gave.
        """
        self._waits = True
        if are_chunks(data_iterator):
            return [self.observe(one) if chunk == 0 else self._waited_for(one) for chunk, one in enumerate(data_iterator)]
        dealer = is_dealer(data_iterator)
        if data_iterator is None or not (dealer or self._contributes()):
            return self._waited_for(data_iterator)
        counter = self._count_dealt if dealer else self._count
        if not dealer and may_replay(data_iterator):
            counter = functools.partial(self._count_once, data_iterator)
        try:
            return observed(data_iterator, counter)
        except TypeError as error:  # the loop will say so too
            self.fail(error)
            return data_iterator

    def _count_once(self, data: Any, batch: Any, waited_ns: int) -> None:
        """A batch that megatron-core takes a second time, to check a result, is no further work of the model."""
        if not is_replayed(data):
            self._count(batch, waited_ns)
        elif self._reruns is not None and not self._evaluating:
            images = self._meter is not None and self._meter.needs_images
            self._reruns.add(lambda: read_lengths(self._readable(batch), images=images))

    def _count(self, batch: Any, waited_ns: int) -> None:
        """A batch that passes."""
        meter = self._meter
        if meter is None or self._aside or self._evaluating:
            dealt = self._place is not None and self._place.dealt
            (self._count_dealt if dealt else self._count_one)(batch, waited_ns)
            return
        start = perf_counter_ns()
        meter.add_batch(batch, waited_ns)
        meter.overhead_ns += perf_counter_ns() - start

    def _count_dealt(self, item: Any, waited_ns: int) -> None:
        """Of samples that a schedule deals out, those that this rank counts."""
        try:
            if self._meter is not None and not (self._place and self._place.dealt):
                raise ConfigError(f"{FIELD} is not set in the configuration, and a schedule deals samples out to ranks; set it")
            own = own_batches(item)
        except Exception as error:
            self.fail(error)
            return
        for number, batch in enumerate(own):
            self._count_one(batch, 0 if number else waited_ns)

    def _waited_for(self, data_iterator: Any) -> Any:
        """Of which nothing is counted but the time that it takes."""
        if data_iterator is None or not self._detail:
            return data_iterator
        try:
            return observed(data_iterator, lambda batch, waited_ns: None)
        except TypeError:
            return data_iterator

    def count(self, batch: Any) -> None:
        """Count one training micro-batch, in loops that show their batches but not their iterator."""
        if self._contributes():
            self._count_one(batch, 0)

    def _contributes(self) -> bool:
        if self._place is not None:
            return self._place.contributes
        if self._said_to_contribute is not None:  # the place is found when all ranks are at their start
            return self._said_to_contribute
        if self._failed:
            return False
        try:
            self._place = self._find_place()
        except Exception as error:
            self.fail(error)
            return False
        return self._place.contributes

    def _count_one(self, batch: Any, waited_ns: int) -> None:
        if self._evaluating:
            return
        meter = self._meter
        if meter is None:
            if not self._failed:
                self._keep(batch, waited_ns)
            return
        start = perf_counter_ns()
        if self._read is None:
            meter.add_batch(batch, waited_ns)
        else:
            meter.add_lengths(lambda: read_lengths(self._readable(batch), images=meter.needs_images), waited_ns)
        meter.overhead_ns += perf_counter_ns() - start

    def _readable(self, batch: Any) -> Any:
        """What ``read`` makes of a batch."""
        try:
            return batch if self._read is None else self._read(batch)
        except Exception as error:
            raise NoLengths(f"read= raised {type(error).__name__}: {error}") from error

    def _keep(self, batch: Any, waited_ns: int) -> None:
        """Take the lengths of a batch before training starts, and let it go."""
        if len(self._early) < _EARLY_KEPT:
            try:
                lengths = read_lengths(self._readable(batch))
                self._early.append((lambda: lengths, waited_ns))
            except Exception as error:
                error.__cause__ = error.__context__ = None  # these, and the traceback, would keep the batch
                self._early.append((functools.partial(_raise, error.with_traceback(None)), waited_ns))
            return
        if not self._lost:
            logger.warning(
                "%d micro-batches have passed observe() and training has not started: is the callback registered? What comes "
                "now is not counted",
                _EARLY_KEPT,
            )
        self._lost += 1

    # ---- events ---------------------------------------------------------------------------------------------------

    @_hook
    def on_train_start(self, context: CallbackContext) -> None:
        """Compile the plan, find the peak, publish the constants."""
        self._start(context)

    def _start(self, context: CallbackContext) -> None:
        try:
            self._prepare(context)
        finally:
            self._job.begin(self._place, self._step, self._known_flops())

    def _prepare(self, context: CallbackContext) -> None:
        self._host = host = host_of(context.state, context.model)
        found_place = host.place or self._find_place()
        self._place = place = place_of_dealt(found_place) if get(model_of(host.config), FIELD) else found_place
        self._aside = place.dealt or self._read is not None
        self._step = self._hosts_step = host.step()
        self._log_interval = self._log_interval or host.log_interval
        self._refuse_mixture(context.user_state)
        if place.rank < 0:  # of the job, but not of those that train together
            self._failed = True
            return
        # What was built: on every rank of a pipeline, whatever comes of it.
        built = None if host.model is None else built_over_stages(host.model)
        compiler = self._compiler(host, built)
        plan, traced = self._judged(self._compile(compiler, self.convention), host.model)
        plans = [plan, *self._other_plans(compiler)] if plan else []
        if plan is not None and host.fused_output_layer:
            plans = [projected(one) for one in plans]
            plan = plans[0]
        summed_on = collective_device()
        device = torch.device(host.device or summed_on)
        found = self._find_peak(host, device, plan.formats.name if plan else number_format(host))
        peak = self._peaks(host, device, plan, found)
        clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
        routing, as_routed = self._routing(host, plan, place)
        kinds: list[Measurement] = [] if routing is None else [Experts(routing, plan if as_routed is not plan else None)]
        if multiplies_matrices(context.optimizer):
            as_routed = self._count_optimizer(context.optimizer, as_routed, kinds)
        if plan is not None and not plan.hardware_unknown and may_rerun():
            self._reruns = RerunCounter(plan)
            kinds.append(Reruns(self._reruns, plan))
        beside = [statistic for other in plans[1:] for statistic in other.statistics if statistic.over in READ]
        shares = shares_of(plan, place, _is_padded(host)) if plan is not None and routing is not None else None
        instruments = self._instruments(host, place, device, context.optimizer, kinds, shares)
        self._meter = Meter(as_routed, place, clock, instruments, summed_on, peak, beside)
        if plan is not None and as_routed is not None:
            plan = plan.with_terms(plan.terms, as_routed.not_counted)
        for why in (_schedules_by_itself(host, place), "" if place.told else shared_batches(host.model, place.world)):
            if why:
                self._meter.fail(ConfigError(why))
        self._take_up()
        self.verified = _verified(plan, built, traced)
        known = Known(
            host=host,
            plan=plan,
            convention=self.convention,
            place=place,
            device_peak=found,
            peak=peak,
            verified=self.verified.facts,
            prices=price_lists(plans),
        )
        context.user_state[FACTS] = self._facts = constants(known)
        self._warn_of_model(plan)
        self._trackers, self._own_trackers = host.trackers, self._open_file(place)
        self._summarise(self._facts)

    def _refuse_mixture(self, user_state: Mapping[str, Any]) -> None:
        other = user_state.get(FACTS, {}).get("convention", self.convention)
        if other != self.convention:
            raise ConfigError(
                f"convention={self.convention!r}: another ThroughputCallback of this run counts in {other!r}, and numbers of two "
                "conventions have no place under one key; keep one callback, and price the finished run in the other one"
            )

    def _routing(self, host: Host, plan: Plan | None, place: Place) -> tuple[Routing | None, Plan | None]:
        """What the routers count, and the plan that prices it: where no expert drops anything, that is the plan as it was."""
        if plan is None or host.model is None or not expert_layers(plan) or _is_captured(model_of(host.config)):
            return None, plan
        found = find_routing(host.model, plan, place)
        factor = get(model_of(host.config), "moe_expert_capacity_factor")
        drops = found is not None and factor is not None and factor >= 0
        return found, routed(plan) if drops else plan

    def _count_optimizer(self, optimizer: Any, plan: Plan | None, kinds: list[Measurement]) -> Plan | None:
        """Add what the optimizer multiplies; where that is not known, nor is what the hardware does."""
        try:
            kinds.append(OptimizerWork(step_flops(optimizer), in_mfu=self._optimizer_in_mfu))
        except ConfigError as error:
            return plan and plan.with_terms(plan.terms, plan.not_counted, (*plan.hardware_unknown, str(error)))
        return plan

    def _instruments(
        self,
        host: Host,
        place: Place,
        device: torch.device,
        optimizer: Any,
        more: Sequence[Measurement],
        experts: ExpertShares | None = None,
    ) -> Instruments:
        kinds: list[Measurement] = list(more)
        every = sampled_every(int(self._compute_time), self._log_interval)
        if self._compute_time:
            kinds.append(ComputeTimes(place, host.model, experts))
        if self._energy:
            kinds.append(Energy(device))
        if self._detail:
            each = {"every_step": every == 1 or self._detail > 1, "each_lap": self._log_interval is None}
            kinds.append(Times(place, host.model, optimizer, **each))
        if self._memory:
            kinds.append(MemoryPeaks(place, device))
        return Instruments(kinds, every=every)

    def _take_up(self) -> None:
        """What was done before: in the checkpoint, and the batches that were taken already."""
        assert self._meter is not None
        if self._restored is not None:
            note = self._meter.totals.load_state_dict(self._restored)
            if note and self._is_first_rank():
                logger.warning("%s", note)
        for lengths, waited_ns in self._early:
            self._meter.add_lengths(lengths, waited_ns)
        if self._lost:
            self._meter.miss(self._lost, "they came before training started")
        self._early.clear()

    def _warn_of_model(self, plan: Plan | None) -> None:
        """What the numbers leave out, or are wrong about."""
        parameters = self._facts.get("parameters", {})
        if parameters.get("trainable") != parameters.get("total"):
            self._all_parameters = parameters["total"]
        if not self._is_first_rank():
            return
        if self.verified.differences:
            logger.warning("%s: %s", _OTHER_MODEL, "; ".join(self.verified.differences))
        for sentence in never_read(plan) if plan is not None else ():
            logger.warning("not counted: %s", sentence)

    def _other_plans(self, compiler: Callable[..., Plan] | None) -> list[Plan]:
        """What the other conventions would charge: rows can be priced again in them."""
        others = (self._compile(compiler, name) for name in conventions.CONVENTIONS if name != self.convention)
        return [plan for plan in others if plan is not None]

    def _compiler(self, host: Host, built: Built | None) -> Callable[..., Plan] | None:
        """Makes the plan of what trains in a convention: of the built model where it tells, of the configuration otherwise."""
        if host.config is None or getattr(host.config, "model", host.config) is None:
            return None  # an adapter could not read the model, and said so
        try:
            described = read(host.config)
            described = replace(described, formats=told(described.formats, host))
            trains = described.trainable
            if built is not None:
                trains = trainable_from(built, trains)
            return functools.partial(compile_plan, described, trainable=trains)
        except Exception as error:
            self._warn_unpriceable(error)
            return None

    def _compile(self, compiler: Callable[..., Plan] | None, convention: str) -> Plan | None:
        if compiler is None:
            return None
        try:
            return compiler(convention=convention)
        except Exception as error:
            if convention == self.convention:
                self._warn_unpriceable(error)
            return None

    def _warn_unpriceable(self, error: Exception) -> None:
        """What was raised follows from the configuration: it is the same on every rank."""
        if self._is_first_rank():
            logger.warning("FLOPs and MFU are not reported, the model cannot be priced: %s", error)

    def _judged(self, plan: Plan | None, model: Any) -> tuple[Plan | None, Plan | str]:
        """The plan that counts, and the one of a trace where that is asked for, or a sentence why there is none."""
        if self._verify is Verify.PARAMETERS or model is None:
            return plan, ""
        try:
            traced = traced_plan(model, self.convention)
        except Exception as error:  # any framework's model
            return plan, f"not traced: {error}"
        taken = plan is None or self._verify is Verify.USE
        return traced if taken else plan, traced

    def _configured_peak(self, host: Host) -> float | None:
        return self._peak_flops or getattr(host.hardware, "peak_flops", None)

    def _find_peak(self, host: Host, device: torch.device, name: str) -> DevicePeak | None:
        """In the number format ``name``."""
        try:
            return device_peak(
                name,
                device_name=getattr(host.hardware, "device_name", None),
                configured=self._configured_peak(host),
                device=device,
            )
        except Exception as error:
            logger.warning("MFU is not reported, the device's peak cannot be found: %s", error)
            return None

    def _peaks(self, host: Host, device: torch.device, plan: Plan | None, found: DevicePeak | None) -> Peak:
        """Also by number format, where several run and nobody has configured one: those, and BF16 to compare with."""
        flops = found.flops if found else None
        if plan is None or not plan.formats.recipe or self._configured_peak(host):
            return Peak(flops)
        formats = plan.evaluate_formats([0] * len(plan.statistics))
        if UNKNOWN in formats and self._is_first_rank():
            logger.warning("MFU is not reported while towers or encoders run: their number format is not known")
        peaks = {name: self._find_peak(host, device, name) for name in {**formats, "bf16": 0}}
        return Peak(flops, {name: peak.flops if peak else None for name, peak in peaks.items()})

    def _open_file(self, place: Place) -> Trackers:
        """``metrics_file``, on the last rank."""
        if not self._metrics_file or not place.is_last:
            return Trackers()
        return Trackers([JsonlTracker(self._metrics_file, step=self._step)])

    def _summarise(self, facts: Mapping[str, Any]) -> None:
        self._trackers.summary(facts)
        self._own_trackers.summary(facts)

    @_hook
    def on_train_step_start(self, context: CallbackContext) -> None:
        """Time runs again after an evaluation or a checkpoint. In a loop that has no on_train_start, this is the start."""
        if self._meter is None and not self._failed:
            self._start(context)
        meter, host = self._meter, self._host
        if meter is not None and host is not None:
            if (step := host.step()) != self._hosts_step:  # one that never counts is counted for
                self._step = self._hosts_step = step
            meter.start_step()
        if self._keeps_job:
            self._job.enter_step(self._step)

    @_hook
    def on_train_step_end(self, context: CallbackContext) -> None:
        """Take what has arrived, publish it with a later step; at a log point end what a sum is of. No device sync."""
        self._step += 1
        if self._keeps_job:
            self._job.leave_step(self._step)
        meter = self._meter
        if meter is None:
            return
        meter.end_step(self._step, skipped=bool(context.skipped_iter))
        # Before the cut: a report is published with a later step, when the loop has logged its own numbers. Whatever
        # happens here, the cut comes next: the other ranks are about to do the same.
        due = self._log_interval is not None and self._step % self._log_interval == 0
        if self._rows.open or meter.awaits:
            meter.attempt(lambda: self._publish(context, beside=not due))
        if due:
            # Rows of a log point in every few steps must be out before the loop logs the next one: their sums start at once.
            (meter.launch if self._log_interval in _DENSE else meter.cut)(self._step)
        if self._keeps_job:
            self._job.tell(self._step, self.total_flops)

    @_hook
    def on_eval_start(self, context: CallbackContext) -> None:
        """An evaluation is no training: neither its time nor its batches count."""
        self._evaluating = True
        self._job.aside("evaluation", self._step)
        if self._meter is not None:
            self._meter.pause()

    @_hook
    def on_eval_end(self, context: CallbackContext) -> None:
        """Time goes on at the next step."""
        self._evaluating = False
        self._job.back(self._step)

    def on_test_start(self, context: CallbackContext) -> None:
        """A test is an evaluation."""
        self.on_eval_start(context)

    def on_test_end(self, context: CallbackContext) -> None:
        """A test is an evaluation."""
        self.on_eval_end(context)

    @_hook
    def on_checkpoint_save(self, context: CallbackContext) -> None:
        """Totals include every step up to now, on all ranks, before ``state_dict`` is read. Saving takes no time."""
        begun = time()
        if self._meter is not None:
            self._meter.pause()
            self._meter.settle()
        self._job.aside("checkpoint", self._step, begun, self._known_flops())

    @_hook
    def on_train_end(self, context: CallbackContext) -> None:
        """The last report, also of an interval that is not full."""
        if self._meter is not None:
            self._meter.pause()
            self.report(context)
            context.user_state[SUMMARY] = self._summary.values()
        self._end_job()
        if self._meter is not None:
            self._leave()

    def _end_job(self) -> None:
        self.job = self._job.end(self._step, self._known_flops()) or self.job
        self._job.close(self._step)
        if self.job is not None:
            self._summarise(self.job.metrics())

    def abandon(self, context: CallbackContext) -> None:
        """The run breaks off on this rank: publish what has arrived, and wait for nobody."""
        with contextlib.suppress(Exception):
            if self._meter is not None:
                self._meter.hurry()
            self._publish(context)
        self._leave()

    def _leave(self) -> None:
        """The last row is out: results to the summary, before anybody closes what it is written to."""
        self.close()
        self._summarise(self._summary.values())
        self._own_trackers.close()

    def close(self) -> None:
        """Leave the model as it was. For loops that start again after a training that broke off, without its end."""
        if self._meter is not None:
            self._meter.close()
        self._job.close(self._step)
        self._rows.close()
        self._rows = Beside(self._row, _MAKES_ROWS)

    # ---- reports --------------------------------------------------------------------------------------------------

    @_hook
    def report(self, context: CallbackContext) -> None:
        """A row of all steps since the last one, now, in :attr:`latest`. Waits for all ranks.

        For loops that decide by themselves when they log, and wait for all ranks then anyway; at the same step on every rank.
        """
        if self._meter is None:
            return
        # First the rows that are being made: they read the instruments. Whatever happens here, the launch comes next.
        self._meter.attempt(lambda: self._publish(context))
        if self._meter.unreported_steps:
            self._meter.launch(self._step)
        self._publish(context, wait=True)

    def _publish(self, context: CallbackContext, *, wait: bool = False, beside: bool = False) -> None:
        """Rows of what has arrived.

        Args:
            context: of the event.
            wait: for all ranks.
            beside: a row is made beside the step that comes now, and published at its end; else made and published at once.
        """
        for step, metrics in self._rows.results():
            self._issue(context, step, metrics)
        while self._meter is not None and (report := self._meter.poll(wait=wait)) is not None:
            if beside:
                self._rows.put(report)
            else:
                self._issue(context, *self._row(report))

    def _row(self, report: Report) -> tuple[int, dict[str, Any]]:
        """The step of a row and its numbers; in any thread, one after the other."""
        metrics = self._metrics(report)
        self._summary.add(metrics)
        return report.step, metrics

    def _issue(self, context: CallbackContext, step: int, metrics: dict[str, Any]) -> None:
        if metrics:
            self.latest = {"step": step, **metrics}
            rows = context.user_state.setdefault(ROWS, {})
            rows[step] = self.latest
            for old in list(rows)[:-_ROWS_KEPT]:
                del rows[old]
        self._trackers.log(metrics, step, commit=True)
        self._own_trackers.log(metrics, step, commit=True)
        if "throughput/incomplete" in metrics and "incomplete" not in self._facts:
            self._facts["incomplete"] = INCOMPLETE
            self._summarise(self._facts)

    def _metrics(self, report: Report) -> dict[str, Any]:
        if report.interval is None:
            if not self._reported_failure and self._is_first_rank():
                logger.warning("throughput is not reported from step %d on: a rank could not count its batches", report.step)
            self._reported_failure = True
            return {}
        metrics = throughput(report.interval)
        self._tell_straggler(report.step, report.interval.measured.get(COMPUTE_TIME))
        if self._all_parameters is not None and "throughput/device/tokens_per_sec" in metrics:
            claimed = 6 * self._all_parameters * metrics["throughput/device/tokens_per_sec"]
            metrics["throughput/tflops/device_6nd"] = claimed / TERA
        if not self._waits:
            metrics.pop("throughput/data_wait_fraction", None)
        reasons = doubts(metrics)
        if reasons or self.verified.differences:
            metrics["throughput/doubtful"] = 1
        if reasons:
            if not self._doubted and self._is_first_rank():
                logger.warning("step %d: %s", report.step, " ".join(reasons))
            self._doubted = True
        return metrics

    def _tell_straggler(self, step: int, compute: Any) -> None:
        """One line for each cause, and for each device that is slow; the rows have the numbers of every interval."""
        if not isinstance(compute, ComputeTime) or (cause := compute.cause) is None:
            return
        what = (cause, compute.rank if cause == "slow device" else None)
        if what not in self._stragglers and self._is_first_rank():
            logger.warning("step %d: %s", step, compute.sentence())
        self._stragglers.add(what)

    def _is_first_rank(self) -> bool:
        return self._place is None or self._place.is_first

    def fail(self, error: Exception) -> None:
        """Stop counting on this rank, with one warning. It still takes part in the sums, or the others would wait."""
        if self._meter is not None:
            self._meter.fail(error)
        elif not self._failed:
            warn_of(error)
        self._failed = True

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def total_flops(self) -> int | None:
        """Of all steps up to now, since the first ever; None: not known. Waits for all ranks: to be asked on each of them."""
        if self._meter is None:
            return None
        self._meter.settle()
        return self._known_flops()

    def _known_flops(self) -> int | None:
        """Of all steps that were summed, since the first ever; None where any of it is missing."""
        totals = self._meter.totals if self._meter is not None else None
        return totals.flops if totals is not None and totals.complete and not totals.lower_bound else None

    def state_dict(self) -> dict[str, Any]:
        """Cumulative integers: equal on every rank, up to the last step, once ``on_checkpoint_save`` was fired."""
        if self._meter is not None:
            return self._meter.attempt(self._meter.totals.state_dict) or Totals.unknown()
        return dict(self._restored or {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the totals of a checkpoint. Before ``on_train_start``."""
        self._restored = dict(state) if state else None


def sampled_every(wanted: int, log_interval: int | None) -> int:
    """One step of so many is sampled, as seldom as wanted (0: nobody says), so that there is one in each interval."""
    wanted = wanted or COMPUTE_TIME_EVERY
    return wanted if log_interval is None else log_interval // max(1, log_interval // wanted)


def _raise(error: Exception) -> Any:
    raise error


def _is_captured(model: Any) -> bool:
    """Whether CUDA graphs may hold the routers, whose hooks run once, when they are captured."""
    flags = get(model, "enable_cuda_graph") or get(model, "external_cuda_graph")
    return bool(flags) or get(model, "cuda_graph_impl") not in (None, "none")


def _is_padded(host: Host) -> bool:
    """Whether every expert is filled up to the same number of rows."""
    return bool(get(model_of(host.config), "moe_pad_expert_input_to_capacity"))


#: Schedules that give every context rank sequences of its own.
_OWN_SCHEDULES = (FIELD, "dynamic_context_parallel")


def _schedules_by_itself(host: Host, place: Place) -> str:
    """Why no rank speaks for the others' batches, if so; follows from the configuration."""
    asked = next((name for name in _OWN_SCHEDULES if get(model_of(host.config), name) and not place.dealt), "")
    return asked and (
        f"{asked}=True: its schedule gives each context rank its own sequences, and the loop does not say which; "
        "the work of context rank 0 is not that of all"
    )


_OTHER_MODEL = "the model that was built is not the one that is priced, FLOPs and MFU are those of another one"


def _verified(plan: Plan | None, built: Built | None, traced: Plan | str) -> Verified:
    """The plan held against the model, where both are there, and against its trace, or why there is none."""
    if plan is None:
        return Verified(reason="not compared: there is no plan")
    found = compare(plan, built or Built({}))
    if isinstance(traced, str):
        return replace(found, reason=traced or found.reason)
    return by_trace(plan, traced, found)


def told(formats: Formats, host: Host) -> Formats:
    """A configuration says how a model is quantised; the loop may say what the rest runs in."""
    return formats.on(host.number_format) if host.number_format else formats.or_on("fp32")


def number_format(host: Host) -> str:
    """Format of most matmuls, of a model that may have no plan."""
    return told(read_formats(functools.partial(get, model_of(host.config))), host).name
