"""Reports how many FLOPs ran and how fast; docs/keys.md lists the logged keys.

In our loop, three lines of a recipe::

    callbacks:
      - _target_: bridge.training.callbacks.ThroughputCallback
        convention: megatron

In another loop with Megatron-Bridge's events, two lines: register the object, and pass the training data iterator
through ``observe``.

The callback is thin: it passes batches to a :class:`~bridge.metrics.meter.Meter` and the meter's reports to the trackers.  An
exception inside it causes one warning and ends the numbers, never the run.
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

#: Keys of ``context.user_state`` under which other callbacks find the constants of the run, the newest rows by step, and, at the
#: end, the run's medians and totals.
FACTS, ROWS, SUMMARY = "throughput/facts", "throughput/rows", "throughput/summary"
_ROWS_KEPT = 4
_MAKES_ROWS = "rows of throughput"
_EARLY_KEPT = 1024


#: With these log intervals the sums of a log point start in its own step, not in the next one.
_DENSE = range(1, 5)

#: By default compute time is measured in one of this many steps.
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
    """How the built model is compared with the plan."""

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
        verify: how the built model is compared with the plan: by its ``parameters``; with ``trace`` also by its FLOPs, traced
            without memory; with ``use`` the traced plan also replaces the configured one.
        read: turns a micro-batch into a mapping with ``input_ids``, ``cu_seqlens``, ...; None: micro-batches are such mappings,
            or have another form that :mod:`bridge.metrics.batch_lengths` reads.
        mesh: a DeviceMesh of the ranks that train together, if megatron-core does not define how they divide the work; this and
            the next three arguments are those of :func:`bridge.metrics.place.find_place`.
        data_parallel: its dimensions along which batches differ, or a process group of ranks whose batches differ.
        contributes: whether the batches of this rank are counted.
        process_group: the ranks that train together; None: all of the job.
        compute_time: compute time is measured in one of this many steps, or more often, so that each interval has a measurement;
            False: never.
        energy: whether to read energy from NVML.
        optimizer_in_mfu: the matrix products of an optimizer (Muon, SOAP) count as model FLOPs in MFU; in HFU they always do.
        detail: how a step's time is split into parts: 0: not at all; 1: waiting for data in every step, the other parts in the
            steps in which compute time is measured; 2: all parts in every step.
        memory: whether to report the memory of the fullest rank.
        ledger: folder in which the life of the job is recorded over restarts (``job.jsonl``), the same on every rank; only for
            other loops, since ours keeps its own ledger. None: it is not recorded.

    Raises:
        ConfigError: an unknown convention, an interval that is not positive, or dimensions that the mesh does not have.
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
        if detail not in (0, 1, 2):
            raise ConfigError(f"detail={detail} must be 0, 1 or 2")
        check_dimensions(mesh, data_parallel)
        self.convention = convention
        self._summary = RunSummary()
        self._job, self._keeps_job = HostLedger(ledger), ledger is not None
        self.job: Job | None = None
        """The life of the job, on the last rank after training; None without ``ledger``."""
        self.latest: dict[str, Any] = {}
        """The newest row; all counted numbers in it are equal on every rank. Empty before the first row."""
        self.verified = Verified()
        """The comparison of the built model with the plan; empty before training starts."""
        self._log_interval = log_interval
        self._peak_flops = peak_flops
        self._metrics_file = metrics_file
        self._find_place = functools.partial(find_place, mesh, data_parallel, contributes, process_group)
        self._said_to_contribute = contributes
        self._compute_time, self._energy, self._optimizer_in_mfu = compute_time, energy, optimizer_in_mfu
        self._detail, self._memory = detail, memory
        self._host: Host | None = None
        self._place: Place | None = None
        self._meter: Meter | None = None
        self._reruns: RerunCounter | None = None
        """Counts repeated iterations, if megatron-core may run some again."""
        self._read = read
        self._early: list[tuple[Callable[[], BatchLengths | None], int]] = []
        """Lengths of the first ``_EARLY_KEPT`` micro-batches that were taken before training started."""
        self._lost = 0
        """The number of further micro-batches that were taken before training started."""
        self._rows = Beside(self._row, _MAKES_ROWS)
        self._facts: dict[str, Any] = {}
        self._restored: Mapping[str, Any] | None = None
        self._trackers, self._own_trackers = Trackers(), Trackers()
        self._step = self._hosts_step = 0
        self._evaluating = False
        self._aside = False
        """Whether batches need more than the usual reading: samples are dealt out, or ``read`` is set."""
        self._waits = False
        """Whether the time spent waiting for batches is known: with ``observe``, but not with ``count``."""
        self._failed = False
        self._reported_failure = False
        self._doubted = False
        self._stragglers: set[tuple[str, int | None]] = set()
        """The warnings about slow ranks so far."""
        self._all_parameters: int | None = None
        """The number of all parameters, if some are frozen."""

    # ---- data -----------------------------------------------------------------------------------------------------

    def observe(self, data_iterator: Any) -> Any:
        """The same iterator or iterable, whose unchanged batches are counted as they pass: see :mod:`bridge.metrics.observed`.

        Under virtual pipelining pass the list of iterators, one per model chunk: each chunk sees every batch, so the
        first one's iterator is counted. (A list of anything else is a list of batches.) Wrap the iterator from which the
        schedule itself takes batches: a prefetcher around the result would run ahead of the steps. Workers of a DataLoader
        are fine, since a batch counts when it is taken. Ranks that do not contribute get their argument back.
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
        """Count a batch unless megatron-core replays it to check a result: that is no additional work of the model."""
        if not is_replayed(data):
            self._count(batch, waited_ns)
        elif self._reruns is not None and not self._evaluating:
            images = self._meter is not None and self._meter.needs_images
            self._reruns.add(lambda: read_lengths(self._readable(batch), images=images))

    def _count(self, batch: Any, waited_ns: int) -> None:
        """Count a batch that passes."""
        meter = self._meter
        if meter is None or self._aside or self._evaluating:
            dealt = self._place is not None and self._place.dealt
            (self._count_dealt if dealt else self._count_one)(batch, waited_ns)
            return
        start = perf_counter_ns()
        meter.add_batch(batch, waited_ns)
        meter.overhead_ns += perf_counter_ns() - start

    def _count_dealt(self, item: Any, waited_ns: int) -> None:
        """Of the samples that a schedule deals out, count those of this rank."""
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
        """The iterator, observed only for the time spent waiting for it."""
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
        if self._said_to_contribute is not None:  # the place is found when training starts on all ranks
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
        """The batch after ``read``, if that is set."""
        try:
            return batch if self._read is None else self._read(batch)
        except Exception as error:
            raise NoLengths(f"read= raised {type(error).__name__}: {error}") from error

    def _keep(self, batch: Any, waited_ns: int) -> None:
        """Read the lengths of a batch that comes before training starts, without keeping the batch."""
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
        # A collective: on every rank of a pipeline, even if the result is not used.
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
        """The counts of the routers, and the plan that prices them: the given plan, if no expert drops tokens."""
        if plan is None or host.model is None or not expert_layers(plan) or _is_captured(model_of(host.config)):
            return None, plan
        found = find_routing(host.model, plan, place)
        factor = get(model_of(host.config), "moe_expert_capacity_factor")
        drops = found is not None and factor is not None and factor >= 0
        return found, routed(plan) if drops else plan

    def _count_optimizer(self, optimizer: Any, plan: Plan | None, kinds: list[Measurement]) -> Plan | None:
        """Count the optimizer's matrix products; if they are unknown, the hardware FLOPs of the plan are unknown too."""
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
        """Add earlier work: the totals of the checkpoint, and the batches that were taken before training started."""
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
        """Warn about what the numbers leave out and about differences between model and plan."""
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
        """The plans of the other conventions, in which rows can be priced again later."""
        others = (self._compile(compiler, name) for name in conventions.CONVENTIONS if name != self.convention)
        return [plan for plan in others if plan is not None]

    def _compiler(self, host: Host, built: Built | None) -> Callable[..., Plan] | None:
        """Compiles a plan for a convention; what trains comes from the built model if possible, else from the configuration."""
        if host.config is None or getattr(host.config, "model", host.config) is None:
            return None  # an adapter could not read the model and has warned
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
        """Warn on one rank: the error follows from the configuration, so it is the same on every rank."""
        if self._is_first_rank():
            logger.warning("FLOPs and MFU are not reported, the model cannot be priced: %s", error)

    def _judged(self, plan: Plan | None, model: Any) -> tuple[Plan | None, Plan | str]:
        """The plan to use, and the traced plan if one was requested, or a sentence that says why there is none."""
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
        """The device's peak in the number format ``name``."""
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
        """The peak; if several number formats run and no peak is configured, also that of each format and of BF16."""
        flops = found.flops if found else None
        if plan is None or not plan.formats.recipe or self._configured_peak(host):
            return Peak(flops)
        formats = plan.evaluate_formats([0] * len(plan.statistics))
        if UNKNOWN in formats and self._is_first_rank():
            logger.warning("MFU is not reported while towers or encoders run: their number format is not known")
        peaks = {name: self._find_peak(host, device, name) for name in {**formats, "bf16": 0}}
        return Peak(flops, {name: peak.flops if peak else None for name, peak in peaks.items()})

    def _open_file(self, place: Place) -> Trackers:
        """The tracker of ``metrics_file``, on the last rank."""
        if not self._metrics_file or not place.is_last:
            return Trackers()
        return Trackers([JsonlTracker(self._metrics_file, step=self._step)])

    def _summarise(self, facts: Mapping[str, Any]) -> None:
        self._trackers.summary(facts)
        self._own_trackers.summary(facts)

    @_hook
    def on_train_step_start(self, context: CallbackContext) -> None:
        """Time counts again after an evaluation or a checkpoint. In a loop without on_train_start, training starts here."""
        if self._meter is None and not self._failed:
            self._start(context)
        meter, host = self._meter, self._host
        if meter is not None and host is not None:
            if (step := host.step()) != self._hosts_step:  # a host that never counts its steps is counted for
                self._step = self._hosts_step = step
            meter.start_step()
        if self._keeps_job:
            self._job.enter_step(self._step)

    @_hook
    def on_train_step_end(self, context: CallbackContext) -> None:
        """Publish reports that have arrived; at a log point end the interval. Never waits for the device."""
        self._step += 1
        if self._keeps_job:
            self._job.leave_step(self._step)
        meter = self._meter
        if meter is None:
            return
        meter.end_step(self._step, skipped=bool(context.skipped_iter))
        # Before the cut: a report is published with a later step, when the loop has logged its own numbers. Even if this
        # fails, the cut must follow, because the other ranks do the same.
        due = self._log_interval is not None and self._step % self._log_interval == 0
        if self._rows.open or meter.awaits:
            meter.attempt(lambda: self._publish(context, beside=not due))
        if due:
            # With a log point every few steps, a row must be published before the loop logs the next one: sums start at once.
            (meter.launch if self._log_interval in _DENSE else meter.cut)(self._step)
        if self._keeps_job:
            self._job.tell(self._step, self.total_flops)

    @_hook
    def on_eval_start(self, context: CallbackContext) -> None:
        """An evaluation is not training: neither its time nor its batches count."""
        self._evaluating = True
        self._job.aside("evaluation", self._step)
        if self._meter is not None:
            self._meter.pause()

    @_hook
    def on_eval_end(self, context: CallbackContext) -> None:
        """Time counts again from the next step on."""
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
        """Complete the totals up to this step on all ranks, before ``state_dict`` is read. Time spent saving does not count."""
        begun = time()
        if self._meter is not None:
            self._meter.pause()
            self._meter.settle()
        self._job.aside("checkpoint", self._step, begun, self._known_flops())

    @_hook
    def on_train_end(self, context: CallbackContext) -> None:
        """Publish the last report, even of a partial interval."""
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
        """The run fails on this rank: publish what has arrived, without waiting for other ranks."""
        with contextlib.suppress(Exception):
            if self._meter is not None:
                self._meter.hurry()
            self._publish(context)
        self._leave()

    def _leave(self) -> None:
        """After the last row: write the results to the summary, before the trackers are closed."""
        self.close()
        self._summarise(self._summary.values())
        self._own_trackers.close()

    def close(self) -> None:
        """Remove all hooks from the model. For loops that start again after a training that failed before its end."""
        if self._meter is not None:
            self._meter.close()
        self._job.close(self._step)
        self._rows.close()
        self._rows = Beside(self._row, _MAKES_ROWS)

    # ---- reports --------------------------------------------------------------------------------------------------

    @_hook
    def report(self, context: CallbackContext) -> None:
        """Publish a row of all steps since the last one now, and put it into :attr:`latest`. Waits for all ranks.

        For loops that decide themselves when to log and then wait for all ranks anyway; call it at the same step on every rank.
        """
        if self._meter is None:
            return
        # First the rows that are being made: they read the instruments. Even if this fails, the launch must follow.
        self._meter.attempt(lambda: self._publish(context))
        if self._meter.unreported_steps:
            self._meter.launch(self._step)
        self._publish(context, wait=True)

    def _publish(self, context: CallbackContext, *, wait: bool = False, beside: bool = False) -> None:
        """Publish rows of the reports that have arrived.

        Args:
            context: the context of the event.
            wait: whether to wait for all ranks.
            beside: whether to make rows in a thread during the next step and publish them at its end, not at once.
        """
        for step, metrics in self._rows.results():
            self._issue(context, step, metrics)
        while self._meter is not None and (report := self._meter.poll(wait=wait)) is not None:
            if beside:
                self._rows.put(report)
            else:
                self._issue(context, *self._row(report))

    def _row(self, report: Report) -> tuple[int, dict[str, Any]]:
        """The step and the numbers of a report's row; called in any thread, one report at a time."""
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
        """Warn once for each cause and each slow device; the rows have the numbers of every interval."""
        if not isinstance(compute, ComputeTime) or (cause := compute.cause) is None:
            return
        what = (cause, compute.rank if cause == "slow device" else None)
        if what not in self._stragglers and self._is_first_rank():
            logger.warning("step %d: %s", step, compute.sentence())
        self._stragglers.add(what)

    def _is_first_rank(self) -> bool:
        return self._place is None or self._place.is_first

    def fail(self, error: Exception) -> None:
        """Stop counting on this rank, with one warning. It still takes part in the sums; otherwise the others would wait."""
        if self._meter is not None:
            self._meter.fail(error)
        elif not self._failed:
            warn_of(error)
        self._failed = True

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def total_flops(self) -> int | None:
        """Total FLOPs of all steps since the first one ever; None: unknown. A collective: call it on all ranks."""
        if self._meter is None:
            return None
        self._meter.settle()
        return self._known_flops()

    def _known_flops(self) -> int | None:
        """Total FLOPs of all summed steps since the first one ever; None if any are missing."""
        totals = self._meter.totals if self._meter is not None else None
        return totals.flops if totals is not None and totals.complete and not totals.lower_bound else None

    def state_dict(self) -> dict[str, Any]:
        """Cumulative integers, equal on every rank; complete up to the last step after ``on_checkpoint_save``."""
        if self._meter is not None:
            return self._meter.attempt(self._meter.totals.state_dict) or Totals.unknown()
        return dict(self._restored or {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the totals of a checkpoint; call it before ``on_train_start``."""
        self._restored = dict(state) if state else None


def sampled_every(wanted: int, log_interval: int | None) -> int:
    """The distance between sampled steps: ``wanted`` (0: the default), or less, so that each log interval has a sampled step."""
    wanted = wanted or COMPUTE_TIME_EVERY
    return wanted if log_interval is None else log_interval // max(1, log_interval // wanted)


def _raise(error: Exception) -> Any:
    raise error


def _is_captured(model: Any) -> bool:
    """Whether CUDA graphs may contain the routers, whose hooks would only run when they are captured."""
    flags = get(model, "enable_cuda_graph") or get(model, "external_cuda_graph")
    return bool(flags) or get(model, "cuda_graph_impl") not in (None, "none")


def _is_padded(host: Host) -> bool:
    """Whether every expert is padded to the same number of rows."""
    return bool(get(model_of(host.config), "moe_pad_expert_input_to_capacity"))


#: Options of schedules that give every context rank its own sequences.
_OWN_SCHEDULES = (FIELD, "dynamic_context_parallel")


def _schedules_by_itself(host: Host, place: Place) -> str:
    """Why the batches of context rank 0 are not those of all context ranks, from the configuration; empty if they are."""
    asked = next((name for name in _OWN_SCHEDULES if get(model_of(host.config), name) and not place.dealt), "")
    return asked and (
        f"{asked}=True: its schedule gives each context rank its own sequences, and the loop does not say which; "
        "the work of context rank 0 is not that of all"
    )


_OTHER_MODEL = "the model that was built is not the one that is priced, FLOPs and MFU are those of another one"


def _verified(plan: Plan | None, built: Built | None, traced: Plan | str) -> Verified:
    """The comparison of the plan with the built model and with its trace, or the reason why there is none."""
    if plan is None:
        return Verified(reason="not compared: there is no plan")
    found = compare(plan, built or Built({}))
    if isinstance(traced, str):
        return replace(found, reason=traced or found.reason)
    return by_trace(plan, traced, found)


def told(formats: Formats, host: Host) -> Formats:
    """The number formats: quantization as configured, everything else in the loop's format, by default as configured or FP32."""
    return formats.on(host.number_format) if host.number_format else formats.or_on("fp32")


def number_format(host: Host) -> str:
    """The format of most matmuls, also of a model without a plan."""
    return told(read_formats(functools.partial(get, model_of(host.config))), host).name
