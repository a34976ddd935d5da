"""Which rank is the slowest, and why: the compute time of every rank against the work it was given.

Hooks on a rank's model chunks time its own forward and backward passes: not the optimizer, not the data, not the waiting of a
pipeline stage for its neighbors or of a replica for the others' gradients.  On a GPU the marks are CUDA events and nothing
waits for them; on a CPU they are processor time of the training thread, of which waiting in gloo uses none.

The ratio of the slowest rank's time to the mean time is split into factors: its replica's work over the mean
replica's, its pipeline stage's over the mean stage's, its experts' over that of all ranks' experts, and the rest, which its
work does not explain.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from bridge.metrics.instruments import COMPUTE_TIME, Instrument, Measurement, Summed
from bridge.metrics.place import Place
from bridge.metrics.timing import Clock, ThreadClock, clock_of
from bridge.metrics.vector import HEAVIEST, MAX_ENTRIES, REPLICA_WORK, Reduce, Slice

if TYPE_CHECKING:
    from bridge.metrics.expert_shares import ExpertShares
    from bridge.metrics.throughput import Interval, Metrics, Work

#: From this imbalance on, the slowest rank gets a line on the console.
_WORTH_TELLING = 1.2

_RANK_BITS = 23


# ---- on this rank ---------------------------------------------------------------------------------------------------


def _hook(method: Any) -> Any:
    """A hook of the model: it must not raise into a forward or backward pass."""

    @wraps(method)
    def guarded(self: ComputeTimer, *args: Any) -> None:
        start = time.perf_counter_ns()
        try:
            method(self, *args)
        except Exception as error:
            self._active, self._error = False, error
        self.overhead_ns += time.perf_counter_ns() - start

    return guarded


class ComputeTimer(Instrument):
    """An instrument: mean nanoseconds per step of this rank's forward and backward passes.

    Args:
        clock: makes a mark at the beginning and the end of each pass.
        chunks: the model on this rank. Only passes in training mode count.
    """

    def __init__(self, clock: Clock, chunks: Sequence[torch.nn.Module]) -> None:
        self._clock = clock
        self._chunks = list(chunks)
        self._active = False
        self.overhead_ns = 0
        """Nanoseconds spent in the hooks."""
        self._error: Exception | None = None
        self._depth = 0
        self._since: Any = None
        self._step: list[tuple[Any, Any]] = []
        self._unread: deque[list[tuple[Any, Any]]] = deque()
        self._seconds, self._steps = 0.0, 0
        self._handles: list[Any] = []

    def run(self) -> None:
        """Training continues; hooks are registered on the model."""
        self._active = self._error is None
        if not self._handles:
            self._handles = [
                handle
                for chunk in self._chunks
                for handle in (
                    chunk.register_forward_pre_hook(self._enter_forward),
                    chunk.register_forward_hook(self._leave_forward),
                )
            ]

    def pause(self) -> None:
        """Training pauses; the hooks are removed from the model."""
        self._active = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def end_step(self) -> None:
        """A training step is over."""
        if self._error is not None:
            raise self._error
        if self._step:
            self._unread.append(self._step)
        self._step, self._depth = [], 0
        self._read()

    def lap(self) -> int | None:
        """Mean nanoseconds of the steps that the device has finished; None if there are none. Unfinished steps are dropped."""
        self._read()
        seconds, steps = self._seconds, self._steps
        self._seconds, self._steps = 0.0, 0
        self._unread.clear()
        return max(1, round(1e9 * seconds / steps)) if steps else None

    def close(self) -> None:
        """Leave the model as it was."""
        self.pause()

    def _read(self) -> None:
        while self._unread and self._clock.reached(self._unread[0][-1][1]):
            self._seconds += sum(self._clock.seconds(start, end) for start, end in self._unread.popleft())
            self._steps += 1

    # A recomputed forward pass runs inside a backward pass: only the outermost is timed.

    def _enter(self) -> None:
        if self._depth == 0:
            self._since = self._clock.mark()
        self._depth += 1

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
            if (tensor := differentiable(output)) is not None:
                tensor.register_hook(self._enter_backward)

    @_hook
    def _enter_backward(self, gradient: torch.Tensor) -> None:
        if self._active:
            self._enter()
            torch.autograd.Variable._execution_engine.queue_callback(self._leave_backward)  # called when this pass is over

    @_hook
    def _leave_backward(self) -> None:
        self._leave()


def open_compute_timer(model: Any) -> ComputeTimer | None:
    """The timer of a rank's model chunks; None where their passes cannot be timed."""
    chunks = modules_of(model)
    if any(chunk._compiled_call_impl is not None for chunk in chunks):  # hooks would be compiled too
        return None
    clock = clock_of(chunks, ThreadClock)
    return None if clock is None else ComputeTimer(clock, chunks)


def modules_of(model: Any) -> list[torch.nn.Module]:
    """The modules among a rank's model chunks: a list, or one model; what is no module is left out."""
    chunks = model if isinstance(model, (list, tuple)) else [model]
    return [chunk for chunk in chunks if isinstance(chunk, torch.nn.Module)]


def differentiable(output: Any) -> torch.Tensor | None:
    """A tensor in a module's output from which a backward pass starts; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output if output.requires_grad else None
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return next((found for item in items if (found := differentiable(item)) is not None), None)


# ---- over all ranks -------------------------------------------------------------------------------------------------


def ranked(value: float, rank: int) -> int:
    """A positive number and the rank that has it as one int64, so that a maximum over ranks finds both.

    Positive floats are ordered like their bits; the last 23 bits hold the rank, and 29 bits of precision remain.
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
        mean, slowest: seconds per step, as a mean over the ranks and of the slowest rank.
        rank: the slowest rank. place: its index in each parallel dimension, by name.
        data: work of its data-parallel replica over the mean replica's; None if unknown.
        stage: work of its pipeline stage over the mean stage's; None if unknown.
        experts: its work with the tokens of its experts over its work with the mean rank's; None if unknown.
        at_most: whether ``data`` is an upper bound: the ratio of the heaviest replica.
    """

    mean: float
    slowest: float
    rank: int
    place: Mapping[str, int] = field(default_factory=dict)
    data: float | None = 1.0
    stage: float | None = 1.0
    experts: float | None = 1.0
    at_most: bool = False

    @property
    def imbalance(self) -> float:
        """The slowest rank's time over the mean: the product of ``work`` and ``device``."""
        return self.slowest / self.mean

    @property
    def work(self) -> float | None:
        """The part of the imbalance that its work explains; None if unknown."""
        if not self.data or not self.stage or not self.experts:
            return None
        return self.data * self.stage * self.experts

    @property
    def device(self) -> float | None:
        """The part of the imbalance that its work does not explain; None if unknown."""
        return None if not self.work else self.imbalance / self.work

    @property
    def cause(self) -> str | None:
        """The largest factor: ``longer data``, ``heavier pipeline stage``, ``fuller experts``, ``slow device``; None: no
        straggler, or unknown."""
        if self.imbalance < _WORTH_TELLING or self.device is None:
            return None
        factors: dict[str, Any] = {
            "longer data": self.data,
            "heavier pipeline stage": self.stage,
            "fuller experts": self.experts,
            "slow device": self.device,
        }
        return max(factors, key=lambda name: factors[name])

    def metrics(self, interval: Interval) -> Metrics:
        """Seconds per step, the slowest rank, and the factors of its excess; on one rank there is nothing to compare."""
        metrics: Metrics = {"throughput/compute_time/mean": self.mean, "throughput/compute_time/max": self.slowest}
        if interval.world_size < 2:
            return metrics
        metrics["throughput/compute_time/slowest_rank"] = self.rank
        metrics |= {f"throughput/compute_time/slowest_{name}": index for name, index in self.place.items()}
        metrics["throughput/imbalance/compute"] = self.imbalance
        if self.work is not None and self.device is not None:
            metrics |= {"throughput/imbalance/work": self.work, "throughput/imbalance/device": self.device}
        return metrics

    def sentence(self) -> str:
        """A line for the console."""
        place = ", ".join(f"{name} {index}" for name, index in self.place.items())
        most, least = ("at most ", "at least ") if self.at_most else ("", "")
        experts = "" if self.experts == 1 else f"experts {self.experts:.2f} x, "
        return (
            f"rank {self.rank}{f' ({place})' if place else ''} computes {self.imbalance:.2f} x as long as the mean rank: "
            f"{self.cause} (data {most}{self.data:.2f} x, stage {self.stage:.2f} x, {experts}device {least}{self.device:.2f} x)"
        )


class ComputeTimes(Measurement):
    """Compute time of every rank, and why the slowest one is slow.

    Args:
        place: place of this process.
        model: the model chunks on this rank.
        experts: prices the load of each rank's experts; None if unknown.
    """

    what = COMPUTE_TIME
    sampled = True

    def __init__(self, place: Place, model: Any = None, experts: ExpertShares | None = None) -> None:
        self._place, self._model, self._experts = place, model, experts
        each = Slice("rank_compute_ns", place.world) if place.world <= MAX_ENTRIES else Slice("slowest_rank", reduce=Reduce.MAX)
        self.slices = (Slice("compute_ns"), each)

    def open(self) -> ComputeTimer | None:
        return open_compute_timer(self._model)

    def entries(self, reading: int) -> dict[str, Any]:
        rank, world = self._place.rank, self._place.world
        if world <= MAX_ENTRIES:
            return {"compute_ns": reading, "rank_compute_ns": [reading * (other == rank) for other in range(world)]}
        return {"compute_ns": reading, "slowest_rank": ranked(reading / 1e9, rank)}

    def measured(self, summed: Summed) -> ComputeTime:
        """The slowest rank and the factors of its excess in the timed steps."""
        place = summed.place
        mean = summed["compute_ns"][0] / place.world / 1e9
        if place.world <= MAX_ENTRIES:
            slowest, rank = max((time_ns / 1e9, index) for index, time_ns in enumerate(summed["rank_compute_ns"]))
        else:
            slowest, rank = unranked(summed["slowest_rank"][0])
        stands = place.indices(rank)
        work = summed.price(summed.sampled)
        data, at_most = _data(summed, work, stands.get("data_parallel"))
        stage: float | None = 1.0
        if place.pipeline > 1:
            stage = ratio_to_mean(work.stage_work, stands.get("pipeline"))
        experts: float | None = 1.0
        if place.expert > 1:
            experts = self._experts.factor(summed, work, stands, data) if self._experts and data else None
        return ComputeTime(
            mean=mean, slowest=slowest, rank=rank, place=stands, data=data, stage=stage, experts=experts, at_most=at_most
        )


def _data(summed: Summed, work: Work, replica: int | None) -> tuple[float | None, bool]:
    """Work of a replica over the mean replica's (None if unknown), and whether it is the heaviest replica's, an upper bound."""
    place = summed.place
    if place.replicas < 2:
        return 1.0, False
    if work.unread_micro_batches or replica is None:
        return None, False
    if REPLICA_WORK in summed.layout:
        return ratio_to_mean(work.replica_work, replica), False
    heaviest, who = unranked(summed[HEAVIEST][0])
    total = work.tokens if work.flops is None else work.flops
    if not total or not is_known(heaviest):
        return None, False
    return heaviest * place.replicas / total, who != replica


def ratio_to_mean(values: Sequence[int], index: int | None) -> float | None:
    """One value over the mean of all; None if there is nothing to compare."""
    total = sum(values)
    return values[index] * len(values) / total if total > 0 and index is not None else None


def is_known(value: float) -> bool:
    """Whether every rank knew its number: those that do not send infinity, which is then the maximum."""
    return math.isfinite(value) and value > 0
