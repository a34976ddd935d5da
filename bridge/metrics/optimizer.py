"""The matmuls of optimizers such as Muon: hardware FLOPs beside the model's, which always count in HFU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.metrics.instruments import Instrument, Measurement, Summed
from bridge.metrics.vector import Slice

if TYPE_CHECKING:
    from bridge.metrics.batch_statistics import BatchStatistics
    from bridge.metrics.throughput import Interval, Metrics

OPTIMIZER = "optimizer"
#: The number formats of their matmuls.
FORMATS = ("bf16", "tf32", "fp32")


class OptimizerCounter(Instrument):
    """An instrument that adds the FLOPs of an optimizer step for each step that changed weights.

    Args:
        flops: FLOPs of one step on this rank, by number format.
    """

    def __init__(self, flops: Mapping[str, int]) -> None:
        self._flops = flops

    def add_counts(self, batch: BatchStatistics, *, skipped: bool) -> None:
        """Add the FLOPs of a step; ``skipped``: the optimizer did nothing."""
        for name, flops in self._flops.items():
            batch.count(_slice(name), 0 if skipped else flops)

    def lap(self) -> int:
        """The readings are in the sums."""
        return 0


class OptimizerWork(Measurement):
    """The work of the optimizer.

    Args:
        flops: FLOPs of one step on this rank, by number format.
        in_mfu: whether they count as model FLOPs in ``throughput/mfu`` too.
    """

    what = OPTIMIZER

    def __init__(self, flops: Mapping[str, int], *, in_mfu: bool = False) -> None:
        self._flops, self._in_mfu = dict(flops), in_mfu
        self.slices = tuple(Slice(_slice(name)) for name in FORMATS)

    def open(self) -> OptimizerCounter:
        return OptimizerCounter(self._flops)

    def measured(self, summed: Summed) -> OptimizerFlops:
        return OptimizerFlops({name: summed[_slice(name)][0] for name in FORMATS}, self._in_mfu)


@dataclass(frozen=True)
class OptimizerFlops:
    """FLOPs of all ranks' optimizers in the timed part of an interval.

    Attributes:
        hardware_flops: FLOPs by number format.
        in_mfu: whether they count as model FLOPs.
    """

    hardware_flops: Mapping[str, int]
    in_mfu: bool = False

    @property
    def model_flops(self) -> Mapping[str, int]:
        """The FLOPs that count in MFU."""
        return self.hardware_flops if self.in_mfu else {}

    def metrics(self, interval: Interval) -> Metrics:
        """The FLOPs of all formats together."""
        return {"throughput/optimizer_flops": sum(self.hardware_flops.values())}


def _slice(name: str) -> str:
    return f"optimizer_flops_{name}"
