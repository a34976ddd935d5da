"""Iterations that megatron-core's rerun state machine repeated: hardware FLOPs, but not model FLOPs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.flops.plan import Plan
from bridge.metrics.batch_lengths import BatchLengths, NoLengths
from bridge.metrics.batch_statistics import BatchStatistics
from bridge.metrics.instruments import Instrument, Measurement, Summed
from bridge.metrics.reduction import from_limbs
from bridge.metrics.totals import whole
from bridge.metrics.vector import Slice, VectorLayout

if TYPE_CHECKING:
    from bridge.metrics.throughput import Interval, Metrics

RERUNS = "reruns"


def may_rerun() -> bool:
    """Whether megatron-core may repeat iterations in this job, according to its configuration."""
    module = sys.modules.get("megatron.core.rerun_state_machine")
    machine = getattr(module, "_GLOBAL_RERUN_STATE_MACHINE", None)
    return machine is not None and machine.get_mode().value != "disabled"


def may_replay(data: Any) -> bool:
    """Whether an iterator can repeat batches, as megatron-core's ``RerunDataIterator`` can."""
    return hasattr(data, "replaying")


def is_replayed(data: Any) -> bool:
    """Whether the batch that such an iterator has just returned is a repetition."""
    return getattr(data, "replaying", False) is True


class RerunCounter(Instrument):
    """An instrument that prices repeated micro-batches. In steps with repetitions, reading them may wait for the device.

    Args:
        plan: plan of the model.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._flops = plan, dict.fromkeys(formats_of(plan), 0)

    def add(self, read: Callable[[], BatchLengths | None]) -> None:
        """Add a repeated micro-batch. An unreadable one is ignored, because it was reported the first time."""
        sums = BatchStatistics(VectorLayout(self._plan.statistics))
        try:
            if (lengths := read()) is not None:
                sums.add(lengths)
        except NoLengths:
            return
        values, device = sums.drain()
        if device is not None:
            values = [host + there for host, there in zip(values, from_limbs(device), strict=True)]
        vector = values[: len(self._plan.statistics)]
        for name, flops in self._plan.evaluate_formats(vector, "hardware").items():
            self._flops[name] += whole(flops)

    def lap(self) -> dict[str, int]:
        """FLOPs by number format since the last lap."""
        lap, self._flops = self._flops, dict.fromkeys(self._flops, 0)
        return lap


def formats_of(plan: Plan) -> tuple[str, ...]:
    """The number formats of a model's matmuls."""
    return tuple(plan.evaluate_formats([0] * len(plan.statistics), "hardware"))


class Reruns(Measurement):
    """The work of repeated iterations.

    Args:
        counter: counter of this rank.
        plan: plan of the model.
    """

    what = RERUNS

    def __init__(self, counter: RerunCounter, plan: Plan) -> None:
        self._counter, self._formats = counter, formats_of(plan)
        self.slices = tuple(Slice(f"rerun_flops_{name}") for name in self._formats)

    def open(self) -> RerunCounter:
        return self._counter

    def entries(self, reading: Mapping[str, int]) -> dict[str, int]:
        return {f"rerun_flops_{name}": flops for name, flops in reading.items()}

    def measured(self, summed: Summed) -> Rerun:
        return Rerun({name: summed[f"rerun_flops_{name}"][0] for name in self._formats})


@dataclass(frozen=True)
class Rerun:
    """FLOPs of repeated iterations, by number format."""

    hardware_flops: Mapping[str, int]

    def metrics(self, interval: Interval) -> Metrics:
        """The FLOPs, if there are any."""
        flops = sum(self.hardware_flops.values())
        return {"throughput/rerun_flops": flops} if flops else {}
