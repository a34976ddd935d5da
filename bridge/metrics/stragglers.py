"""Which rank is the slowest, and why: compute time of every rank against the work it was given.

What is timed are a rank's own forward and backward passes, between hooks on its model chunks: not the optimizer, not the
data, not the waiting of a pipeline stage for its neighbours or of a replica for the others' gradients.  On a GPU the marks
are CUDA events and nothing waits for them; on a CPU they are processor time of the training thread, of which waiting in gloo
costs none.

The ratio of the slowest rank's time to the mean time is split into factors: its replica's work over the mean
replica's, its pipeline stage's over the mean stage's, and the rest, which its work does not explain.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Optional

import torch

from bridge.metrics.instruments import COMPUTE_TIME
from bridge.metrics.timing import Clock, CudaClock, ThreadClock

#: From here on the slowest rank is worth a line on the console.
_WORTH_TELLING = 1.2

_RANK_BITS = 23


# ---- on this rank ---------------------------------------------------------------------------------------------------


def _hook(method: Any) -> Any:
    """A hook of the model: it must not raise into a forward or backward pass."""

    @wraps(method)
    def guarded(self: ComputeTimer, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as error:
            self._active, self._error = False, error

    return guarded


class ComputeTimer:
    """An instrument: mean nanoseconds a step of this rank's forward and backward passes.

    Args:
        clock: marks of it are made in the passes.
        chunks: the model on this rank. Only passes in training mode count.
    """

    entry = "compute_ns"
    what = COMPUTE_TIME

    def __init__(self, clock: Clock, chunks: Sequence[torch.nn.Module]) -> None:
        self._clock = clock
        self._active = False
        self._error: Optional[Exception] = None
        self._depth = 0
        self._since: Any = None
        self._step: list[tuple[Any, Any]] = []
        self._unread: deque[list[tuple[Any, Any]]] = deque()
        self._seconds, self._steps = 0.0, 0
        self._handles = [
            handle
            for chunk in chunks
            for handle in (
                chunk.register_forward_pre_hook(self._enter_forward),
                chunk.register_forward_hook(self._leave_forward),
            )
        ]

    def run(self) -> None:
        """Training goes on."""
        self._active = self._error is None

    def pause(self) -> None:
        """What comes now is no training."""
        self._active = False

    def end_step(self) -> None:
        """A training step is over."""
        if self._error is not None:
            raise self._error
        if self._step:
            self._unread.append(self._step)
        self._step, self._depth = [], 0
        self._read()

    def lap(self) -> Optional[int]:
        """Mean nanoseconds of the steps that the device has finished; None if there are none. Those it has not are dropped."""
        self._read()
        seconds, steps = self._seconds, self._steps
        self._seconds, self._steps = 0.0, 0
        self._unread.clear()
        return max(1, round(1e9 * seconds / steps)) if steps else None

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _read(self) -> None:
        while self._unread and self._clock.reached(self._unread[0][-1][1]):
            self._seconds += sum(self._clock.seconds(start, end) for start, end in self._unread.popleft())
            self._steps += 1

    # A recomputed forward pass runs inside a backward pass: only the outermost is timed.

    def _enter(self) -> None:
        if self._depth == 0:
            self._since = self._clock.mark()
        self._depth += 1

    @_hook
    def _leave(self) -> None:
        if self._depth == 0:  # the step that it began in is over
            return
        self._depth -= 1
        if self._depth == 0:
            self._step.append((self._since, self._clock.mark()))

    @_hook
    def _enter_forward(self, module: torch.nn.Module, args: Any) -> None:
        if self._active and module.training:
            self._enter()

    @_hook
    def _leave_forward(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._active and module.training:
            self._leave()
            if (tensor := _differentiable(output)) is not None:
                tensor.register_hook(self._enter_backward)

    @_hook
    def _enter_backward(self, gradient: torch.Tensor) -> None:
        if self._active:
            self._enter()
            torch.autograd.Variable._execution_engine.queue_callback(self._leave)  # called when this backward pass is over


def open_compute_timer(model: Any) -> Optional[ComputeTimer]:
    """The timer of a rank's model chunks; None where their passes cannot be timed."""
    chunks = [chunk for chunk in (model if isinstance(model, (list, tuple)) else [model]) if isinstance(chunk, torch.nn.Module)]
    devices = {parameter.device.type for chunk in chunks for parameter in chunk.parameters()}
    clocks: dict[str, type[Clock]] = {"cuda": CudaClock, "cpu": ThreadClock}
    if len(devices) != 1 or not devices <= clocks.keys():
        return None
    if any(chunk._compiled_call_impl is not None for chunk in chunks):  # hooks would be compiled too
        return None
    return ComputeTimer(clocks[devices.pop()](), chunks)


def _differentiable(output: Any) -> Optional[torch.Tensor]:
    """Some tensor in a module's output that a backward pass starts from."""
    if isinstance(output, torch.Tensor):
        return output if output.requires_grad else None
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return next((found for item in items if (found := _differentiable(item)) is not None), None)


# ---- over all ranks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dimension:
    """One parallel dimension: ranks that differ in its index alone are ``stride`` apart."""

    name: str
    size: int
    stride: int = 1

    def index(self, rank: int) -> int:
        """Where a rank stands in this dimension."""
        return rank // self.stride % self.size


def ranked(value: float, rank: int) -> int:
    """A number and who has it as one int64, larger for larger numbers, so that a maximum finds both.

    Positive floats are ordered like their bits; the last 23 of them are given to the rank, 29 of precision remain.
    """
    bits = struct.unpack(">q", struct.pack(">d", value))[0]
    return bits >> _RANK_BITS << _RANK_BITS | rank


def unranked(encoded: int) -> tuple[float, int]:
    """The number and the rank of :func:`ranked`."""
    rank = encoded & ((1 << _RANK_BITS) - 1)
    return struct.unpack(">d", struct.pack(">q", encoded - rank))[0], rank


@dataclass(frozen=True, kw_only=True)
class ComputeTime:
    """Compute time of all ranks in an interval.

    Attributes:
        mean, slowest: seconds a step: mean over the ranks, and of the slowest one.
        rank: the slowest. place: its index in each parallel dimension, by name.
        data: work of its data-parallel replica over the mean replica's; None if unknown.
        stage: work of its pipeline stage over the mean stage's; None if unknown.
        at_most: ``data`` is an upper bound: the largest of all replicas.
    """

    mean: float
    slowest: float
    rank: int
    place: Mapping[str, int] = field(default_factory=dict)
    data: Optional[float] = 1.0
    stage: Optional[float] = 1.0
    at_most: bool = False

    @property
    def imbalance(self) -> float:
        """The slowest rank's time over the mean: the product of ``work`` and ``device``."""
        return self.slowest / self.mean

    @property
    def work(self) -> Optional[float]:
        """The part of it that its work explains."""
        return None if not self.data or not self.stage else self.data * self.stage

    @property
    def device(self) -> Optional[float]:
        """The part of it that its work does not explain."""
        return None if not self.work else self.imbalance / self.work

    @property
    def cause(self) -> Optional[str]:
        """The largest factor: ``longer data``, ``heavier pipeline stage``, ``slow device``; None: no straggler, or unknown."""
        if self.imbalance < _WORTH_TELLING or not self.data or not self.stage or not self.device:
            return None
        factors = {"longer data": self.data, "heavier pipeline stage": self.stage, "slow device": self.device}
        return max(factors, key=lambda name: factors[name])

    def sentence(self) -> str:
        """For the console."""
        place = ", ".join(f"{name} {index}" for name, index in self.place.items())
        most, least = ("at most ", "at least ") if self.at_most else ("", "")
        return (
            f"rank {self.rank}{f' ({place})' if place else ''} computes {self.imbalance:.2f} x as long as the mean rank: "
            f"{self.cause} (data {most}{self.data:.2f} x, stage {self.stage:.2f} x, device {least}{self.device:.2f} x)"
        )


def ratio_to_mean(values: Sequence[int], index: int) -> Optional[float]:
    """One value over the mean of all; None if there is nothing to compare."""
    total = sum(values)
    return values[index] * len(values) / total if total > 0 else None


def is_known(value: float) -> bool:
    """Ranks that do not know a number send infinity, so that a maximum tells."""
    return math.isfinite(value) and value > 0
