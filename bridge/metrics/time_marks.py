"""Puts the spans of a step around what a rank does, in the loop that is there, and takes them away again.

megatron-core calls the marks itself, once an object stands where its configuration says (``config.timers``).  Elsewhere hooks
on the model mark its forward and backward passes.  The optimizer's step and every wait for other ranks are marked in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Optional

import torch

from bridge.metrics import spans as marks
from bridge.metrics.spans import BACKWARD, FORWARD, OPTIMIZER, Spans, Timers
from bridge.metrics.stragglers import _differentiable as differentiable
from bridge.metrics.time_parts import RankTimes, Shape
from bridge.metrics.timing import Clock, CudaClock, HostClock

TIME_PARTS = "time parts"
"""What this is an instrument of."""

Undo = Callable[[], None]


class TimeMarks:
    """An instrument: where the seconds of this rank's steps go.

    Args:
        model: the chunks of this rank.
        optimizer: of them; None: its steps are not told apart.
        clock: of the marks.
        shape: of all ranks' entries.
        stage: pipeline stage of this rank.
        every_wait: whether every wait is seen in every step, rather than in one of an interval.
    """

    what = TIME_PARTS

    def __init__(
        self,
        model: Sequence[Any],
        optimizer: Any,
        *,
        clock: Clock,
        shape: Shape,
        stage: int = 0,
        every_wait: bool = False,
    ) -> None:
        self.spans = Spans(clock, every_wait=every_wait)
        self.times = RankTimes(shape, stage)
        self._undo = [*_mark_passes(self.spans, model, optimizer), *_mark_optimizer(self.spans, optimizer)]
        marks.listen(self.spans)

    def run(self) -> None:
        """Training goes on."""
        self.spans.run()

    def pause(self) -> None:
        """What comes now is no training."""
        self.spans.pause()

    def end_step(self) -> None:
        """A training step is over."""
        self.spans.end_step()
        self.times.add(self.spans.steps())

    def lap(self) -> Optional[tuple[list[int], list[int]]]:
        """What this rank sends of the steps since the last lap; None if there is nothing yet."""
        self.times.add(self.spans.steps())
        self.spans.sample()
        return self.times.take()

    def close(self) -> None:
        """Leave model, optimizer and loop as they were."""
        if marks.listening() is self.spans:
            marks.listen(None)
        while self._undo:
            self._undo.pop()()


def open_time_marks(model: Any, optimizer: Any = None, *, shape: Shape, stage: int = 0, detail: int = 1) -> Optional[TimeMarks]:
    """The marks of a rank; None with ``detail`` 0, and where passes cannot be marked.

    Args:
        model: a module, or the list of this rank's chunks.
        optimizer: what steps them.
        shape: of all ranks' entries.
        stage: pipeline stage of this rank.
        detail: 0: nothing; 1: each phase of every step, and every wait of one step in an interval; 2: every wait.
    """
    chunks = [chunk for chunk in (model if isinstance(model, (list, tuple)) else [model]) if isinstance(chunk, torch.nn.Module)]
    devices = {parameter.device.type for chunk in chunks for parameter in chunk.parameters()}
    clocks: dict[str, type[Clock]] = {"cuda": CudaClock, "cpu": HostClock}
    if not detail or len(devices) != 1 or not devices <= clocks.keys():
        return None
    clock = clocks[devices.pop()]()
    return TimeMarks(chunks, optimizer, clock=clock, shape=shape, stage=stage, every_wait=detail > 1)


# ---- passes ---------------------------------------------------------------------------------------------------------


def _mark_passes(spans: Spans, chunks: Sequence[Any], optimizer: Any) -> Iterator[Undo]:
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
    """megatron-core's configuration of a chunk, which its schedules ask for ``timers``; None elsewhere."""
    while chunk is not None:
        config = getattr(chunk, "config", None)
        if hasattr(config, "timers"):
            return config
        chunk = getattr(chunk, "module", None)
    return None


def _replace_timers(spans: Spans, config: Any) -> Undo:
    before = config.timers
    timers = config.timers = Timers(spans, before)

    def undo() -> None:
        if config.timers is timers:
            config.timers = before

    return undo


def _hook(spans: Spans, chunk: torch.nn.Module) -> Iterator[Undo]:
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


def _mark_optimizer(spans: Spans, optimizer: Any) -> Iterator[Undo]:
    if isinstance(optimizer, torch.optim.Optimizer):
        yield optimizer.register_step_pre_hook(lambda *_: spans.push(OPTIMIZER)).remove
        yield optimizer.register_step_post_hook(lambda *_: spans.pop(OPTIMIZER)).remove
    elif callable(step := getattr(optimizer, "step", None)):
        yield _replace_step(spans, optimizer, step)


def _replace_step(spans: Spans, optimizer: Any, step: Callable[..., Any]) -> Undo:
    @wraps(step)
    def marked(*arguments: Any, **options: Any) -> Any:
        spans.push(OPTIMIZER)
        try:
            return step(*arguments, **options)
        finally:
            spans.pop(OPTIMIZER)

    optimizer.step = marked

    def undo() -> None:
        if optimizer.__dict__.get("step") is marked:
            del optimizer.step

    return undo
