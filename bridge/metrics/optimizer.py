"""The matrix products of optimizers that multiply matrices: work of the devices beside the model's, in HFU always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from bridge.metrics.instruments import Kind, Summed
from bridge.metrics.vector import Slice

if TYPE_CHECKING:
    from bridge.metrics.batch_statistics import BatchStatistics
    from bridge.metrics.throughput import Interval, Metrics

OPTIMIZER = "optimizer"
#: What their products may run in.
FORMATS = ("bf16", "tf32", "fp32")


class OptimizerCounter:
    """An instrument: one step's products of this rank are added for each step that changed weights.

    Args:
        flops: of one step on this rank, by number format.
    """

    def __init__(self, flops: Mapping[str, int]) -> None:
        self._flops = flops

    def run(self) -> None:
        """Steps are counted, not time."""

    def pause(self) -> None:
        """The same."""

    def end_step(self) -> None:
        """Counted before."""

    def add_counts(self, batch: BatchStatistics, *, skipped: bool) -> None:
        """A step is over; ``skipped``: the optimizer did nothing."""
        for name, flops in self._flops.items():
            batch.count(_slice(name), 0 if skipped else flops)

    def lap(self) -> int:
        """The readings are in the sums."""
        return 0

    def close(self) -> None:
        """No more steps."""


class OptimizerWork(Kind):
    """What optimizers multiply.

    Args:
        flops: of one step on this rank, by number format.
        in_mfu: they count as model FLOPs in ``throughput/mfu`` too.
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
    """Products of all ranks in the timed part of an interval.

    Attributes:
        flops: by number format.
        in_mfu: whether they count as model FLOPs.
    """

    flops: Mapping[str, int]
    in_mfu: bool = False

    def metrics(self, interval: Interval) -> Metrics:
        """Their number, and utilisation with them: None where that is not known."""
        metrics: Metrics = {"throughput/optimizer_flops": sum(self.flops.values())}
        work = {"hfu": (interval.timed.hardware_flops, interval.timed.hardware_formats)}
        if self.in_mfu:
            work["mfu"] = interval.timed.flops, interval.timed.formats
        for name, (flops, formats) in work.items():
            peak = self._peak(interval, formats)
            known = flops is not None and peak is not None
            done = (flops or 0) + sum(self.flops.values())
            metrics[f"throughput/{name}"] = done / interval.seconds / (peak * interval.world_size) if known and peak else None
        return metrics

    def _peak(self, interval: Interval, formats: Mapping[str, int]) -> Optional[float]:
        """Of model and optimizer together; where the run has one peak, that is not the one of TF32."""
        if not interval.peak.by_format:
            return None if self.flops.get("tf32") or self.flops.get("fp32") else interval.peak.of(formats)
        together = Counter(formats)
        together.update(self.flops)
        return interval.peak.of(together)


def _slice(name: str) -> str:
    return f"optimizer_flops_{name}"
