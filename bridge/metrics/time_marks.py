"""Marks the spans of a step in the running loop, and removes the marks again.

megatron-core calls the object at ``config.timers`` itself.  In other loops hooks on the model mark its forward and backward
passes.  The optimizer's step and every wait for other ranks are marked in both.  The marks are set before a sampled step and
removed after it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from bridge.metrics import spans as marks
from bridge.metrics.instruments import Instrument, Measurement, Summed
from bridge.metrics.place import Place
from bridge.metrics.spans import BACKWARD, FORWARD, OPTIMIZER, Listener, Spans, Timers
from bridge.metrics.stragglers import differentiable, modules_of
from bridge.metrics.time_parts import MeanStep, RankTimes, TimeEntries, measured, time_parts
from bridge.metrics.timing import Clock, HostClock, clock_of
from bridge.metrics.vector import Reduce, Slice

if TYPE_CHECKING:
    from bridge.metrics.throughput import Interval, Metrics

TIME_PARTS = "time parts"
"""The name of this measurement, for users."""

_SUMS, _LEAST = "time_ns", "time_least"

#: Steps whose spans are kept: reading them together costs a fraction of reading them one by one.
_MOST_UNREAD = 32

Undo = Callable[[], None]


class TimeMarks(Instrument):
    """An instrument that measures where the time of this rank's steps goes.

    Args:
        model: the model chunks of this rank.
        optimizer: their optimizer; None: its steps are not marked.
        clock: makes the marks.
        shape: shape of all ranks' entries.
        stage: pipeline stage of this rank.
        every_step: whether every step is sampled.
        each_lap: whether the step after a lap is sampled too, for loops that do not announce the next lap.
    """

    def __init__(
        self,
        model: Sequence[Any],
        optimizer: Any,
        *,
        clock: Clock,
        shape: TimeEntries,
        stage: int = 0,
        every_step: bool = False,
        each_lap: bool = False,
    ) -> None:
        self.spans = Spans(clock, every_step=every_step)
        self._each_lap = each_lap
        self.times = RankTimes(shape, stage)
        self._cost_ns = _cost_of_a_span(clock)
        self.overhead_ns = 0
        """Nanoseconds that the marks took, estimated from the cost of one on this machine."""
        self._model, self._optimizer = model, optimizer
        self._undo: list[Undo] = []

    def run(self) -> None:
        """Training continues."""
        self.spans.run()
        if self.spans.sampled:
            self.start_sample()
        elif self.spans.needs_data_marked:
            self._listen(waits=False)

    def start_sample(self) -> None:
        """A sampled step begins: in it everything is marked."""
        self.spans.sample()
        if self.spans.running and not self._undo:
            self._listen(waits=True)
            # One by one, so that the marks before one that fails are removed too.
            for undo in mark(self.spans, self._model, self._optimizer):
                self._undo.append(undo)

    def pause(self) -> None:
        """Training pauses: the hooks are removed from model, optimizer and loop."""
        self.spans.pause()
        self._unmark()

    def _listen(self, *, waits: bool) -> None:
        if isinstance(marks.listener, (Spans, type(None))):  # a profiler keeps its place
            marks.listen(self.spans, waits=waits)

    def _unmark(self) -> None:
        if marks.listener is self.spans:
            marks.listen(self.spans if self.spans.running and self.spans.needs_data_marked else None, waits=False)
        while self._undo:
            self._undo.pop()()

    def end_step(self) -> None:
        """A training step is over."""
        sampled = self.spans.sampled
        self.overhead_ns += self._cost_ns * self.spans.end_step()
        if sampled:
            if not self.spans.sampled:
                self._unmark()
            if self.spans.unread >= _MOST_UNREAD:
                self.times.add(self.spans.steps())

    def lap(self) -> tuple[list[int], list[int]] | None:
        """The integers that this rank sends for the steps since the last lap; None if there is no sample yet."""
        self.times.add(self.spans.steps())
        if self._each_lap:
            self.start_sample()
        return self.times.take()

    def close(self) -> None:
        """No more steps."""
        self.pause()


def _cost_of_a_span(clock: Clock, repeats: int = 100) -> int:
    spans = Spans(clock)
    spans.run()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        spans.push(OPTIMIZER)
        spans.pop(OPTIMIZER)
    return (time.perf_counter_ns() - start) // repeats


class Times(Measurement):
    """Where the seconds of all ranks' steps go.

    Args:
        place: place of this process.
        model: a module, or the list of this rank's chunks; None if it is not available.
        optimizer: its optimizer.
        every_step: whether every step is sampled.
        each_lap: whether the step after a log point is sampled, see :class:`TimeMarks`.
    """

    what = TIME_PARTS

    def __init__(
        self, place: Place, model: Any, optimizer: Any = None, *, every_step: bool = False, each_lap: bool = False
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._options = {"every_step": every_step, "each_lap": each_lap}
        self.has_samples = not every_step
        self._shape = TimeEntries(place.pipeline, place.virtual)
        self._stage = place.indices(place.rank).get("pipeline", 0)
        self._marks: TimeMarks | None = None
        self.slices = (
            Slice(_SUMS, len(self._shape.entries)),
            Slice(_LEAST, self._shape.minima, Reduce.MAX),  # of negated numbers, so the minimum
        )

    def open(self) -> TimeMarks | None:
        """The marks of this rank; None if its passes cannot be marked."""
        chunks = modules_of(self._model)
        if (clock := clock_of(chunks, HostClock)) is None:
            return None
        self._marks = TimeMarks(chunks, self._optimizer, clock=clock, shape=self._shape, stage=self._stage, **self._options)
        return self._marks

    def entries(self, reading: Any) -> Mapping[str, Any]:
        """The integers to sum, and those for the minima, negated."""
        sums, least = reading
        return {_SUMS: sums, _LEAST: [-value for value in least]}

    def measured(self, summed: Summed) -> TimeParts | None:
        """Seconds by part, mean over the ranks."""
        if self._marks is None:
            return None
        least = [-value for value in summed[_LEAST]]
        found = measured(self._shape, self._marks.times, summed[_SUMS], least, summed.place.world)
        return None if found is None else TimeParts(found, _on_padding(summed), tuple(self._marks.times.lengths))


def _on_padding(summed: Summed) -> int | None:
    """FLOPs of the linear layers on padded positions; None if unknown."""
    (positions,), (tokens,) = summed["positions"], summed["tokens"]
    vector = summed.layout.zeros()
    vector[summed.layout.index["tokens"]] = max(0, positions - tokens)
    return summed.price(vector).flops


@dataclass(frozen=True)
class TimeParts:
    """The seconds of an interval's steps.

    Attributes:
        found: what the ranks measured.
        padding: FLOPs on padded positions; None if unknown.
        lengths: seconds of each of this rank's steps.
    """

    found: MeanStep
    padding: int | None = None
    lengths: tuple[float, ...] = ()

    def metrics(self, interval: Interval) -> Metrics:
        """Each part in seconds per step and as a fraction, and percentiles of the step times."""
        step_time = interval.seconds / interval.timed.steps
        parts = time_parts(step_time, self.found, **self._at_peak(interval))
        metrics: Metrics = {f"throughput/time/{name}": seconds for name, seconds in parts.items()}
        metrics |= {f"throughput/time_fraction/{name}": seconds / step_time for name, seconds in parts.items()}
        if self.lengths:
            ordered = sorted(self.lengths)
            metrics["throughput/step_time/median"] = median(ordered)
            metrics["throughput/step_time/p95"] = ordered[math.ceil(0.95 * len(ordered)) - 1]
        return metrics

    def _at_peak(self, interval: Interval) -> dict[str, float | None]:
        """Seconds per step that one device takes at its peak: for the counted FLOPs, padding and recomputation."""
        timed, peak = interval.timed, interval.peak.of(interval.timed.formats)
        hardware_peak = interval.peak.of(timed.hardware_formats)
        if timed.flops is None or not peak:
            return {}
        share = 1 / interval.world_size / timed.steps
        ideal = timed.flops / peak * share
        known = timed.hardware_flops is not None and hardware_peak
        return {
            "ideal": ideal,
            "padding": None if self.padding is None else self.padding / peak * share,
            "recompute": max(0.0, timed.hardware_flops / hardware_peak * share - ideal) if known else None,  # type: ignore[operator]
        }


# ---- passes ---------------------------------------------------------------------------------------------------------


def mark(spans: Listener, chunks: Sequence[Any], optimizer: Any) -> Iterator[Undo]:
    """Mark passes and the optimizer's steps, one mark at a time; yields the function that removes each."""
    return chain(_mark_passes(spans, chunks, optimizer), _mark_optimizer(spans, optimizer))


def _mark_passes(spans: Listener, chunks: Sequence[Any], optimizer: Any) -> Iterator[Undo]:
    schedules = {id(config): config for chunk in chunks if (config := _config(chunk)) is not None}
    if not schedules:
        for chunk in chunks:
            if chunk._compiled_call_impl is None:  # hooks would be compiled too
                yield from _hook(spans, chunk)
        return
    parts = (optimizer, *(getattr(optimizer, "chained_optimizers", None) or ()))
    found = (getattr(part, "config", None) for part in parts)
    schedules |= {id(config): config for config in found if hasattr(config, "timers")}
    for config in schedules.values():
        yield _replace_timers(spans, config)


def _config(chunk: Any) -> Any:
    """megatron-core's configuration of a chunk, whose ``timers`` its schedules call; None in other loops."""
    while chunk is not None:
        config = getattr(chunk, "config", None)
        if hasattr(config, "timers"):
            return config
        chunk = getattr(chunk, "module", None)
    return None


def _replace_timers(spans: Listener, config: Any) -> Undo:
    before = config.timers
    timers = config.timers = Timers(spans, before)

    def undo() -> None:
        if config.timers is timers:
            config.timers = before

    return undo


def _hook(spans: Listener, chunk: torch.nn.Module) -> Iterator[Undo]:
    def enter_forward(module: torch.nn.Module, args: Any) -> None:
        if module.training:
            spans.push(FORWARD)

    def leave_forward(module: torch.nn.Module, args: Any, output: Any) -> None:
        if module.training:
            spans.pop(FORWARD)
            if (tensor := differentiable(output)) is not None:
                tensor.register_hook(enter_backward)

    def enter_backward(gradient: torch.Tensor) -> None:
        spans.push(BACKWARD)
        torch.autograd.Variable._execution_engine.queue_callback(leave_backward)  # called when this backward pass is over

    def leave_backward() -> None:
        spans.pop(BACKWARD)

    yield chunk.register_forward_pre_hook(enter_forward).remove
    yield chunk.register_forward_hook(leave_forward).remove


# ---- optimizer ------------------------------------------------------------------------------------------------------


def _mark_optimizer(spans: Listener, optimizer: Any) -> Iterator[Undo]:
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):  # accelerate's wrapper is an Optimizer too, and has no hooks
        yield optimizer.register_step_pre_hook(lambda *_: spans.push(OPTIMIZER)).remove
        yield optimizer.register_step_post_hook(lambda *_: spans.pop(OPTIMIZER)).remove
    elif callable(step := getattr(optimizer, "step", None)):
        yield _replace_step(spans, optimizer, step)


def _replace_step(spans: Listener, optimizer: Any, step: Callable[..., Any]) -> Undo:
    @wraps(step)
    def marked(*arguments: Any, **options: Any) -> Any:
        spans.push(OPTIMIZER)
        try:
            return step(*arguments, **options)
        finally:
            spans.pop(OPTIMIZER)

    own = optimizer.__dict__.get("step")
    optimizer.step = marked

    def undo() -> None:
        if optimizer.__dict__.get("step") is marked:
            del optimizer.step
            if own is not None:  # another library's
                optimizer.step = own

    return undo
