"""Iterations that megatron-core's rerun state machine ran again: what the devices did once more, and no work of the model."""

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
    """Whether megatron-core may run iterations again in this job; follows from its configuration."""
    module = sys.modules.get("megatron.core.rerun_state_machine")
    machine = getattr(module, "_GLOBAL_RERUN_STATE_MACHINE", None)
    return machine is not None and machine.get_mode().value != "disabled"


def may_replay(data: Any) -> bool:
    """Whether an iterator can give batches again: megatron-core's ``RerunDataIterator``."""
    return hasattr(data, "replaying")


def is_replayed(data: Any) -> bool:
    """Whether the batch that such an iterator just gave was given before."""
    return getattr(data, "replaying", False) is True


class RerunCounter(Instrument):
    """An instrument: prices the micro-batches that run again. Reading them may wait for the device, in these steps alone.

    Args:
        plan: of the model.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._flops = plan, dict.fromkeys(formats_of(plan), 0)

    def add(self, read: Callable[[], BatchLengths | None]) -> None:
        """One more micro-batch that was given before; one that cannot be read was said to be then."""
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
    """The number formats that a model runs in."""
    return tuple(plan.evaluate_formats([0] * len(plan.statistics), "hardware"))


class Reruns(Measurement):
    """What ran again.

    Args:
        counter: of this rank.
        plan: of the model.
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
    """FLOPs of iterations that ran again, by number format."""

    hardware_flops: Mapping[str, int]

    def metrics(self, interval: Interval) -> Metrics:
        """Their number, where there are any."""
        flops = sum(self.hardware_flops.values())
        return {"throughput/rerun_flops": flops} if flops else {}
