"""Memory of the fullest rank: what torch's allocator has held at most, what it has reserved, and how often it had to try again.

The allocator's peaks are read and never reset: they are also the loop's own.  Without a GPU there is the process's peak alone.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bridge.metrics.instruments import MEMORY, Instrument, Measurement, Summed
from bridge.metrics.place import Place
from bridge.metrics.vector import MAX_ENTRIES, Reduce, Slice

if TYPE_CHECKING:
    from bridge.metrics.throughput import Interval, Metrics

#: A number of bytes travels in units of the allocator's smallest block, beside the rank that has it.
_UNIT, _RANK_BITS = 512, 23
_RETRIES = "allocator_retries"


@dataclass(frozen=True)
class RankPeak:
    """The most that a rank has held so far: bytes, and which rank."""

    size: int
    rank: int

    def encoded(self) -> int:
        """As one integer, larger for more bytes."""
        return self.size // _UNIT << _RANK_BITS | self.rank

    @classmethod
    def decoded(cls, number: int) -> RankPeak:
        """The inverse, to a unit of 512 bytes."""
        return cls((number >> _RANK_BITS) * _UNIT, number & ((1 << _RANK_BITS) - 1))


@dataclass(frozen=True)
class FullestRank:
    """Memory of all ranks.

    Attributes:
        peaks: by name, as the keys have it: ``peak_allocated``; of the fullest rank.
        retries: of the allocators of all ranks in the interval; None without a GPU.
    """

    peaks: Mapping[str, RankPeak]
    retries: int | None = None

    @property
    def fullest(self) -> RankPeak:
        """The first of the peaks."""
        return next(iter(self.peaks.values()))

    def metrics(self, interval: Interval) -> Metrics:
        """Bytes; the rank where there are several."""
        metrics: Metrics = {f"throughput/memory/{name}": peak.size for name, peak in self.peaks.items()}
        if interval.world_size > 1:
            metrics["throughput/memory/fullest_rank"] = self.fullest.rank
        if self.retries is not None:
            metrics["throughput/memory/allocator_retries"] = self.retries
        return metrics


class MemoryPeaks(Measurement):
    """The fullest rank.

    Args:
        place: of this process.
        device: that the models of all ranks compute on.
    """

    what = MEMORY

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place, self._device = place, device
        self._names = ("peak_allocated", "peak_reserved") if device.type == "cuda" else ("peak_rss",)
        self._each = place.world <= MAX_ENTRIES
        options: dict[str, Any] = {"size": place.world} if self._each else {"reduce": Reduce.MAX}
        self.slices = (Slice(_RETRIES), *(Slice(f"memory_{name}", **options) for name in self._names))

    def open(self) -> MemoryMeter:
        return MemoryMeter(lambda: cuda_memory(self._device) if self._device.type == "cuda" else host_memory())

    def entries(self, reading: Mapping[str, int]) -> dict[str, Any]:
        rank, world = self._place.rank, self._place.world

        def entry(size: int) -> Any:
            return [size * (other == rank) for other in range(world)] if self._each else RankPeak(size, rank).encoded()

        return {_RETRIES: reading[_RETRIES], **{f"memory_{name}": entry(reading[name]) for name in self._names}}

    def measured(self, summed: Summed) -> FullestRank:
        retries = summed[_RETRIES][0] if self._device.type == "cuda" else None
        return FullestRank({name: self._fullest(summed[f"memory_{name}"]) for name in self._names}, retries)

    def _fullest(self, entries: list[int]) -> RankPeak:
        if not self._each:
            return RankPeak.decoded(entries[0])
        rank = max(range(len(entries)), key=lambda rank: entries[rank])
        return RankPeak(entries[rank], rank)


class MemoryMeter(Instrument):
    """An instrument over readings of peaks, and of a counter of retries since the process began."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read
        self._retries = read()[_RETRIES]

    def lap(self) -> dict[str, int]:
        """The peaks so far, and the retries since the last lap."""
        reading = self._read()
        before, self._retries = self._retries, reading[_RETRIES]
        return {**reading, _RETRIES: max(reading[_RETRIES] - before, 0)}


def cuda_memory(device: torch.device) -> dict[str, int]:
    """torch's allocator on a GPU, in bytes; no synchronisation."""
    found = torch.cuda.memory_stats(device)
    return {
        "peak_allocated": found.get("allocated_bytes.all.peak", 0),
        "peak_reserved": found.get("reserved_bytes.all.peak", 0),
        _RETRIES: found.get("num_alloc_retries", 0),
    }


def host_memory() -> dict[str, int]:
    """The most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return {"peak_rss": peak * (1 if sys.platform == "darwin" else 1024), _RETRIES: 0}
