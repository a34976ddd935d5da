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

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any, Optional

import torch

from bridge.flops import ConfigError, compile_plan, conventions
from bridge.flops.formats import UNKNOWN, Formats
from bridge.flops.formats import read as read_formats
from bridge.flops.pipeline import Layout
from bridge.flops.plan import Plan
from bridge.flops.reading import get, model_of, read
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.energy import open_energy_meter
from bridge.metrics.instruments import COMPUTE_TIME, ENERGY, Instruments
from bridge.metrics.meter import Meter, Report, never_read, warn_of
from bridge.metrics.observed import are_chunks, observed
from bridge.metrics.peak import DevicePeak, device_peak
from bridge.metrics.reduction import collective_device
from bridge.metrics.stragglers import ComputeTime, Dimension, open_compute_timer
from bridge.metrics.throughput import TERA, doubts, throughput
from bridge.metrics.timing import Clock, CudaClock, HostClock
from bridge.metrics.totals import Totals, whole
from bridge.metrics.trackers import AttachedWandb, JsonlTracker, Trackers
from bridge.training.callbacks.events import Callback, CallbackContext
from bridge.training.state import Groups
from bridge.training.trainable import Built, built_over_stages, parallel_state, trainable_from
from bridge.training.verify import Verified, compare

logger = logging.getLogger(__name__)

#: Keys of ``context.user_state`` where other callbacks find the constants of the run, and the newest rows by step.
FACTS, ROWS = "throughput/facts", "throughput/rows"
_ROWS_KEPT = 4
_EARLY_KEPT = 1024


#: The fact of a run whose totals miss something.
INCOMPLETE = "totals are lower bounds: the lengths of some micro-batches could not be read"

_Hook = Callable[["ThroughputCallback", CallbackContext], None]


def _hook(method: _Hook) -> _Hook:
    """An event: timed, and its exceptions kept from the training loop."""

    @functools.wraps(method)
    def guarded(self: ThroughputCallback, context: CallbackContext) -> None:
        start = time.perf_counter_ns()
        try:
            method(self, context)
        except Exception as error:
            self.fail(error)
        if self._meter is not None:
            self._meter.overhead_ns += time.perf_counter_ns() - start

    return guarded


class ThroughputCallback(Callback):
    """Exact FLOPs, MFU and token rates, summed over all ranks once per log interval.

    Args:
        convention: how FLOPs are counted: ``megatron``, ``maxtext``, ``exact`` or ``executed``.
        log_interval: steps between log points; None: ``cfg.logger.log_interval``.
        peak_flops: dense peak of one device in FLOP/s; None: ``cfg.hardware.peak_flops``, else the table of devices.
        metrics_file: JSON lines for loops without trackers of their own; ours has ``logger.metrics_file``.
        read: from a micro-batch to a mapping with ``input_ids``, ``cu_seqlens``, ...; None: it is one, or another form that
            :mod:`bridge.metrics.batch_lengths` knows.

    Raises:
        ConfigError: an unknown convention, or a log interval that is not positive.
    """

    def __init__(
        self,
        convention: str = "megatron",
        log_interval: Optional[int] = None,
        peak_flops: Optional[float] = None,
        metrics_file: Optional[str] = None,
        read: Optional[Callable[[Any], Any]] = None,
    ) -> None:
        conventions.get(convention)
        if log_interval is not None and log_interval < 1:
            raise ConfigError(f"log_interval={log_interval} must be at least 1 step")
        self.convention = convention
        self.latest: dict[str, Any] = {}
        """The newest row, equal on every rank in all that is counted; empty before the first."""
        self.verified = Verified()
        """What the built model said of the plan; before training starts, nothing."""
        self._log_interval = log_interval
        self._peak_flops = peak_flops
        self._metrics_file = metrics_file
        self._groups: Optional[Groups] = None
        self._meter: Optional[Meter] = None
        self._read = read
        self._early: list[tuple[Callable[[], Optional[BatchLengths]], int]] = []
        """Lengths of micro-batches that were taken before training started; of the first ``_EARLY_KEPT``."""
        self._lost = 0
        """How many came after these."""
        self._facts: dict[str, Any] = {}
        self._restored: Optional[Mapping[str, Any]] = None
        self._trackers: Optional[Trackers] = None
        self._step = 0
        self._evaluating = False
        self._waits = False
        """Whether the time spent waiting for batches is seen: through ``observe``, not through ``count``."""
        self._failed = False
        self._reported_failure = False
        self._doubted = False
        self._stragglers: set[tuple[str, Optional[int]]] = set()
        """What was told about slow ranks."""
        self._all_parameters: Optional[int] = None
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
            return [self.observe(iterator) if chunk == 0 else iterator for chunk, iterator in enumerate(data_iterator)]
        if data_iterator is None or not self._contributes():
            return data_iterator
        try:
            return observed(data_iterator, self._count)
        except TypeError as error:  # the loop will say so too
            self.fail(error)
            return data_iterator

    def count(self, batch: Any) -> None:
        """Count one training micro-batch, in loops that show their batches but not their iterator."""
        if self._contributes():
            self._count(batch, 0)

    def _contributes(self) -> bool:
        if self._groups is None:
            self._groups = current_groups()
        return self._groups.speaks_for_replica

    def _count(self, batch: Any, waited_ns: int) -> None:
        if self._evaluating:
            return
        if self._meter is None:
            if not self._failed:
                self._keep(batch, waited_ns)
            return
        start = time.perf_counter_ns()
        meter = self._meter
        if self._read is None:
            meter.add_batch(batch, waited_ns)
        else:
            meter.add_lengths(lambda: read_lengths(self._readable(batch), images=meter.needs_images), waited_ns)
        meter.overhead_ns += time.perf_counter_ns() - start

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
        state, cfg = context.state, context.state.cfg
        self._groups = groups = current_groups()
        self._step = state.train_state.step
        self._log_interval = self._log_interval or getattr(getattr(cfg, "logger", None), "log_interval", None) or 10
        # What was built: on every rank of a pipeline, whatever comes of it.
        built = None if context.model is None else built_over_stages(context.model)
        plan = self._compile(state, built)
        device = collective_device()
        clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
        instruments = Instruments()
        instruments.open(COMPUTE_TIME, lambda: open_compute_timer(context.model))
        instruments.open(ENERGY, lambda: open_energy_meter(device))
        self._meter = Meter(
            plan,
            clock=clock,
            contributes=groups.speaks_for_replica,
            replicas=groups.data_size,
            replica=groups.data_rank,
            world_size=groups.world_size,
            rank=groups.rank,
            dimensions=current_dimensions(groups),
            pipeline=groups.pipeline_size,
            layout=pipeline_layout(plan, groups) if plan else None,
            instruments=instruments,
            device=device,
        )
        if self._restored is not None:
            note = self._meter.totals.load_state_dict(self._restored)
            if note and groups.rank == 0:
                logger.warning("%s", note)
        for lengths, waited_ns in self._early:
            self._meter.add_lengths(lengths, waited_ns)
        if self._lost:
            self._meter.miss(self._lost, "they came before training started")
        self._early.clear()
        peak = self._find_peak(state, device, plan.formats.name if plan else number_format(state))
        self._meter.peak_flops = peak.flops if peak else None
        if plan is not None and plan.formats.recipe and not self._configured_peak(state):
            self._meter.peaks = self._find_peaks(state, device, plan)
        self.verified = _verified(plan, built)
        facts = {**constants(cfg, plan, peak, groups, self.convention), **self.verified.facts}
        if self.verified.differences and self._is_first_rank():
            logger.warning("%s: %s", _OTHER_MODEL, "; ".join(self.verified.differences))
        if plan is not None and self._is_first_rank():
            for sentence in never_read(plan):
                logger.warning("not counted: %s", sentence)
        if self._meter.peaks:
            facts["peaks"] = dict(self._meter.peaks)
        context.user_state[FACTS] = self._facts = facts
        parameters = facts.get("parameters", {})
        if parameters.get("trainable") != parameters.get("total"):
            self._all_parameters = parameters["total"]
        self._trackers = self._find_trackers(state)
        self._trackers.summary(facts)

    def _compile(self, state: Any, built: Optional[Built]) -> Optional[Plan]:
        """The plan of what trains: of the built model where it tells, of the configuration otherwise."""
        cfg = state.cfg
        if getattr(cfg, "model", cfg) is None:  # an adapter could not read the model, and said so
            return None
        try:
            described = read(cfg)
            described = replace(described, formats=told(described.formats, state))
            trains = described.trainable
            if built is not None:
                trains = trainable_from(built, trains)
            return compile_plan(described, convention=self.convention, trainable=trains)
        except Exception as error:  # follows from the configuration: the same on every rank
            if self._is_first_rank():
                logger.warning("FLOPs and MFU are not reported, the model cannot be priced: %s", error)
            return None

    def _configured_peak(self, state: Any) -> Optional[float]:
        return self._peak_flops or getattr(getattr(state.cfg, "hardware", None), "peak_flops", None)

    def _find_peak(self, state: Any, device: torch.device, name: str) -> Optional[DevicePeak]:
        """In the number format ``name``."""
        hardware = getattr(state.cfg, "hardware", None)
        try:
            return device_peak(
                name,
                device_name=getattr(hardware, "device_name", None),
                configured=self._configured_peak(state),
                device=device,
            )
        except Exception as error:
            logger.warning("MFU is not reported, the device's peak cannot be found: %s", error)
            return None

    def _find_peaks(self, state: Any, device: torch.device, plan: Plan) -> dict[str, Optional[float]]:
        """By number format: those that run, and BF16 to compare with."""
        formats = plan.evaluate_formats([0] * len(plan.statistics))
        if UNKNOWN in formats and self._is_first_rank():
            logger.warning("MFU is not reported while towers or encoders run: their number format is not known")
        found = {name: self._find_peak(state, device, name) for name in {**formats, "bf16": 0}}
        return {name: peak.flops if peak else None for name, peak in found.items()}

    def _find_trackers(self, state: Any) -> Trackers:
        """Those of our loop; elsewhere the loop's W&B run and ``metrics_file``, on the last rank."""
        trackers = getattr(state, "trackers", None)
        if isinstance(trackers, Trackers):
            return trackers
        found: list[Any] = []
        if wandb := getattr(state, "wandb_logger", None):
            found.append(AttachedWandb(wandb))
        if self._metrics_file and self._groups and self._groups.rank == self._groups.world_size - 1:
            found.append(JsonlTracker(self._metrics_file, step=self._step))
        return Trackers(found)

    @_hook
    def on_train_step_start(self, context: CallbackContext) -> None:
        """Time runs again after an evaluation or a checkpoint. In a loop that has no on_train_start, this is the start."""
        if self._meter is None and not self._failed:
            self._start(context)
        elif self._meter is not None:
            self._meter.resume()

    @_hook
    def on_train_step_end(self, context: CallbackContext) -> None:
        """Publish what has arrived; at a log point send the sums on their way. No wait, no device sync."""
        self._step += 1
        if self._meter is None:
            return
        self._meter.end_step(skipped=bool(context.skipped_iter))
        # Before the launch: a report is published with a later step, when the loop has logged its own numbers. Whatever
        # happens here, the launch comes next: the other ranks are about to do the same.
        self._meter.attempt(lambda: self._publish(context))
        if self._step % self._log_interval == 0:  # type: ignore[operator]
            self._meter.launch(self._step)

    @_hook
    def on_eval_start(self, context: CallbackContext) -> None:
        """An evaluation is no training: neither its time nor its batches count."""
        self._evaluating = True
        if self._meter is not None:
            self._meter.pause()

    @_hook
    def on_eval_end(self, context: CallbackContext) -> None:
        """Time goes on at the next step."""
        self._evaluating = False

    def on_test_start(self, context: CallbackContext) -> None:
        """A test is an evaluation."""
        self.on_eval_start(context)

    def on_test_end(self, context: CallbackContext) -> None:
        """A test is an evaluation."""
        self.on_eval_end(context)

    @_hook
    def on_checkpoint_save(self, context: CallbackContext) -> None:
        """Totals include every step up to now, on all ranks, before ``state_dict`` is read. Saving takes no time."""
        if self._meter is not None:
            self._meter.pause()
            self._meter.settle()

    @_hook
    def on_train_end(self, context: CallbackContext) -> None:
        """The last report, also of an interval that is not full."""
        if self._meter is None:
            return
        self._meter.pause()
        self.report(context)
        self.close()
        if self._trackers is not None:
            self._trackers.summary({key: value for key, value in self.latest.items() if key != "step"})
            if not isinstance(getattr(context.state, "trackers", None), Trackers):
                self._trackers.close()

    def close(self) -> None:
        """Leave the model as it was. For loops that start again after a training that broke off, without its end."""
        if self._meter is not None:
            self._meter.close()

    # ---- reports --------------------------------------------------------------------------------------------------

    @_hook
    def report(self, context: CallbackContext) -> None:
        """A row of all steps since the last one, now, in :attr:`latest`. Waits for all ranks.

        For loops that decide by themselves when they log, and wait for all ranks then anyway; at the same step on every rank.
        """
        if self._meter is None:
            return
        if self._meter.unreported_steps:
            self._meter.launch(self._step)
        self._publish(context, wait=True)

    def _publish(self, context: CallbackContext, *, wait: bool = False) -> None:
        assert self._meter is not None
        while (report := self._meter.poll(wait=wait)) is not None:
            metrics = self._metrics(report)
            if metrics:
                self.latest = {"step": report.step, **metrics}
                rows = context.user_state.setdefault(ROWS, {})
                rows[report.step] = self.latest
                for step in list(rows)[:-_ROWS_KEPT]:
                    del rows[step]
            if self._trackers is not None:
                self._trackers.log(metrics, report.step, commit=True)
                if "throughput/incomplete" in metrics and "incomplete" not in self._facts:
                    self._facts["incomplete"] = INCOMPLETE
                    self._trackers.summary(self._facts)

    def _metrics(self, report: Report) -> dict[str, Any]:
        if report.interval is None:
            if not self._reported_failure and self._is_first_rank():
                logger.warning("throughput is not reported from step %d on: a rank could not count its batches", report.step)
            self._reported_failure = True
            return {}
        metrics = throughput(report.interval)
        self._tell_straggler(report.step, report.interval.compute)
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

    def _tell_straggler(self, step: int, compute: Optional[ComputeTime]) -> None:
        """One line for each cause, and for each device that is slow; the rows have the numbers of every interval."""
        if compute is None or (cause := compute.cause) is None:
            return
        what = (cause, compute.rank if cause == "slow device" else None)
        if what not in self._stragglers and self._is_first_rank():
            logger.warning("step %d: %s", step, compute.sentence())
        self._stragglers.add(what)

    def _is_first_rank(self) -> bool:
        return self._groups is None or self._groups.rank == 0

    def fail(self, error: Exception) -> None:
        """Stop counting on this rank, with one warning. It still takes part in the sums, or the others would wait."""
        if self._meter is not None:
            self._meter.fail(error)
        elif not self._failed:
            warn_of(error)
        self._failed = True

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Cumulative integers: equal on every rank, up to the last step, once ``on_checkpoint_save`` was fired."""
        if self._meter is not None:
            return self._meter.attempt(self._meter.totals.state_dict) or Totals.unknown()
        return dict(self._restored or {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the totals of a checkpoint. Before ``on_train_start``."""
        self._restored = dict(state) if state else None


def _raise(error: Exception) -> Any:
    raise error


def current_groups() -> Groups:
    """This process's place in the job: megatron-core's, if it is set up; else each rank is a data-parallel replica."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Groups()
    if parallel_state() is not None:
        return Groups.from_parallel_state()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Groups(rank=rank, world_size=world_size, data_rank=rank, data_size=world_size)


def current_dimensions(groups: Groups) -> list[Dimension]:
    """The parallel dimensions of more than one rank, in whatever order megatron-core was told to lay them out."""
    if groups.data_size == groups.world_size:
        return [Dimension("data_parallel", groups.data_size)] if groups.data_size > 1 else []
    from megatron.core import parallel_state as ps

    found = {
        "data_parallel": ps.get_data_parallel_group,
        "pipeline": ps.get_pipeline_model_parallel_group,
        "context": ps.get_context_parallel_group,
        "tensor": ps.get_tensor_model_parallel_group,
    }
    ranks = {name: torch.distributed.get_process_group_ranks(group()) for name, group in found.items()}
    return [Dimension(name, len(those), those[1] - those[0]) for name, those in ranks.items() if len(those) > 1]


def pipeline_layout(plan: Plan, groups: Groups) -> Layout:
    """What stands on the stages of this job: their number is the job's, the rest the configuration's."""
    chunks = groups.virtual_pipeline_size if groups.virtual_pipeline_size > 1 else None
    return replace(plan.layout, pipeline_model_parallel_size=groups.pipeline_size, virtual_pipeline_model_parallel_size=chunks)


_OTHER_MODEL = "the model that was built is not the one that is priced, FLOPs and MFU are those of another one"


def _verified(plan: Optional[Plan], built: Optional[Built]) -> Verified:
    """The plan held against the model, where both are there."""
    if plan is None:
        return Verified(reason="not compared: there is no plan")
    return compare(plan, built or Built({}))


def told(formats: Formats, state: Any) -> Formats:
    """A configuration says how a model is quantised; our state and other loops' adapters say what the rest runs in."""
    base = getattr(state, "number_format", None)
    return formats.on(base) if base else formats.or_on("fp32")


def number_format(state: Any) -> str:
    """Format of most matmuls, of a model that may have no plan."""
    return told(read_formats(functools.partial(get, model_of(state.cfg))), state).name


def constants(cfg: Any, plan: Optional[Plan], peak: Optional[DevicePeak], groups: Groups, convention: str) -> dict[str, Any]:
    """What a finished run needs to be scored again: device, peak and its source, and what the formula was given."""
    facts: dict[str, Any] = {
        "convention": convention,
        "device": peak.device if peak else None,
        "number_format": peak.number_format if peak else None,
        "number_format_recipe": plan.formats.recipe.name if plan and plan.formats.recipe else None,
        "peak_flops": peak.flops if peak else None,
        "peak_source": peak.source if peak else "unknown",
        "world_size": groups.world_size,
        "tensor_model_parallel_size": groups.tensor_size,
        "pipeline_model_parallel_size": groups.pipeline_size,
        "virtual_pipeline_model_parallel_size": groups.virtual_pipeline_size,
        "context_parallel_size": groups.context_size,
        "expert_model_parallel_size": groups.expert_size,
        "data_parallel_size": groups.data_size,
        "formula_inputs": _options(cfg.model),
    }
    if plan is not None:
        facts["not_counted"] = [*plan.not_counted, *never_read(plan)]
        facts["parameters"] = parameters = plan.parameters()
        facts["trainable_percent"] = 100 * parameters["trainable"] / parameters["total"]
        facts["statistics"] = [statistic.name for statistic in plan.statistics]
        seq_length = getattr(cfg.model, "seq_length", None)
        if seq_length and not any(statistic.over in _BESIDE_TOKENS for statistic in plan.statistics):
            facts["flops_per_token"] = float(plan.flops([seq_length])) / seq_length
            facts["flops_per_token_seq_length"] = seq_length
            facts["planned_flops"] = planned_flops(cfg, plan, seq_length)
    else:
        facts["not_counted"] = ["the whole model"]
    return facts


#: What a sequence of tokens alone says nothing of.
_BESIDE_TOKENS = ("encoder", "cross", "joint", "byte_patches", "cross_products")


def planned_flops(cfg: Any, plan: Plan, seq_length: int) -> Optional[int]:
    """FLOPs of the whole run if every sample is full, which padding and packing stay below; None if that is unknown."""
    train = getattr(cfg, "train", None)
    steps, samples = getattr(train, "train_iters", None), getattr(train, "global_batch_size", None)
    grows = getattr(train, "rampup_batch_size", None)
    if not steps or not samples or grows or any(statistic.over != "sequences" for statistic in plan.statistics):
        return None
    return steps * samples * whole(plan.flops([seq_length]))


def _options(model: Any) -> dict[str, Any]:
    """The fields of a model configuration that are set to something plain."""
    if is_dataclass(model) and not isinstance(model, type):
        fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    elif isinstance(model, Mapping):
        fields = dict(model)
    else:
        fields = dict(getattr(model, "__dict__", {}))
    plain = (bool, int, float, str, list, tuple, dict)
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in fields.items()
        if isinstance(value, plain) or is_dataclass(value)
    }
