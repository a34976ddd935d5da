"""Memory of the fullest rank: the peaks of what torch's allocator held and reserved, and how often it had to retry.

The allocator's peaks are read and never reset, because the loop may use them too.  Without a GPU there is only the peak of the
process's resident memory.
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

#: A number of bytes is sent in units of the allocator's smallest block, with the rank in the lowest bits.
_UNIT, _RANK_BITS = 512, 23
_RETRIES = "allocator_retries"


@dataclass(frozen=True)
class RankPeak:
    """The peak memory of a rank so far: bytes, and the rank."""

    size: int
    rank: int

    def encoded(self) -> int:
        """As one integer, which grows with the bytes, so that a maximum over ranks finds both."""
        return self.size // _UNIT << _RANK_BITS | self.rank

    @classmethod
    def decoded(cls, number: int) -> RankPeak:
        """The inverse of :meth:`encoded`, rounded down to 512 bytes."""
        return cls((number >> _RANK_BITS) * _UNIT, number & ((1 << _RANK_BITS) - 1))


@dataclass(frozen=True)
class FullestRank:
    """Memory of all ranks.

    Attributes:
        peaks: the peak of the fullest rank, by the name in the key: ``peak_allocated``.
        retries: retries of all ranks' allocators in the interval; None without a GPU.
    """

    peaks: Mapping[str, RankPeak]
    retries: int | None = None

    @property
    def fullest(self) -> RankPeak:
        """The fullest rank by the first of the peaks."""
        return next(iter(self.peaks.values()))

    def metrics(self, interval: Interval) -> Metrics:
        """Bytes, and the fullest rank if there are several ranks."""
        metrics: Metrics = {f"throughput/memory/{name}": peak.size for name, peak in self.peaks.items()}
        if interval.world_size > 1:
            metrics["throughput/memory/fullest_rank"] = self.fullest.rank
        if self.retries is not None:
            metrics["throughput/memory/allocator_retries"] = self.retries
        return metrics


class MemoryPeaks(Measurement):
    """Memory of the fullest rank.

    Args:
        place: place of this process.
        device: the device that this rank's model computes on; its type is the same on all ranks.
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
    """An instrument that reads peaks, and a counter of retries since the process began."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read
        self._retries = read()[_RETRIES]

    def lap(self) -> dict[str, int]:
        """The peaks so far, and the retries since the last lap."""
        reading = self._read()
        before, self._retries = self._retries, reading[_RETRIES]
        return {**reading, _RETRIES: max(reading[_RETRIES] - before, 0)}


def cuda_memory(device: torch.device) -> dict[str, int]:
    """Statistics of torch's allocator on a GPU, in bytes; does not synchronize."""
    found = torch.cuda.memory_stats(device)
    return {
        "peak_allocated": found.get("allocated_bytes.all.peak", 0),
        "peak_reserved": found.get("reserved_bytes.all.peak", 0),
        _RETRIES: found.get("num_alloc_retries", 0),
    }


def host_memory() -> dict[str, int]:
    """The peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return {"peak_rss": peak * (1 if sys.platform == "darwin" else 1024), _RETRIES: 0}
