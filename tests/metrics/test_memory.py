"""Memory of the fullest rank: readings by hand, peaks with their rank, and what is absent without a GPU."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import torch

from bridge.metrics import memory
from bridge.metrics.instruments import Instruments, Summed
from bridge.metrics.memory import FullestRank, MemoryMeter, MemoryPeaks, RankPeak, cuda_memory, host_memory
from bridge.metrics.place import Place
from bridge.metrics.vector import VectorLayout

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_a_peak_travels_with_its_rank():
    for size in (0, 512, 80 * 2**30, 100 * 2**40):
        for rank in (0, 7, 2**23 - 1):
            assert RankPeak.decoded(RankPeak(size, rank).encoded()) == RankPeak(size, rank)
    assert RankPeak(2**49 - 512, 2**23 - 1).encoded() < 2**63
    assert RankPeak(1024, 0).encoded() > RankPeak(512, 2**23 - 1).encoded()


def test_retries_are_those_of_the_interval():
    counts = iter([5, 5, 8, 2])
    meter = MemoryMeter(lambda: {"peak_allocated": 100, "allocator_retries": next(counts)})
    assert [meter.lap()["allocator_retries"] for _ in range(3)] == [0, 3, 0]


def test_what_the_allocator_says(monkeypatch):
    found = {"allocated_bytes.all.peak": 3 * 2**30, "reserved_bytes.all.peak": 4 * 2**30, "num_alloc_retries": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: found)
    assert cuda_memory(CUDA) == {"peak_allocated": 3 * 2**30, "peak_reserved": 4 * 2**30, "allocator_retries": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})  # before the first allocation
    assert cuda_memory(CUDA) == {"peak_allocated": 0, "peak_reserved": 0, "allocator_retries": 0}


def test_the_process_on_a_cpu():
    held = torch.ones(40 * 2**20)  # 160 MiB
    reading = host_memory()["peak_rss"]
    assert held.nbytes <= reading <= 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def over_ranks(device, readings, world=None):
    """What the vectors of ranks with these readings come to; in a larger job, where the others have less."""
    world = world or len(readings)
    places = [Place(rank=rank, world=world) for rank in range(len(readings))]
    kinds = [MemoryPeaks(place, device) for place in places]
    layout = VectorLayout((), places[0], kinds[0].slices)
    summed, maxima = [0] * len(layout.names), [0] * len(layout.maxima)
    for kind, reading in zip(kinds, readings, strict=True):
        for name, entry in kind.entries(reading).items():
            values = entry if isinstance(entry, list) else [entry]
            for part, value in zip(next(one for one in layout.slices if one.name == name).names, values, strict=True):
                if part in layout.maxima:
                    position = layout.maxima.index(part)
                    maxima[position] = max(maxima[position], value)
                else:
                    summed[layout.names.index(part)] += value
    return kinds[0].measured(Summed(layout, places[0], summed, summed, summed, maxima, lambda vector: None))


def test_the_fullest_of_three_ranks():
    readings = [
        {"peak_allocated": size * 2**30, "peak_reserved": (size + 1) * 2**30, "allocator_retries": size} for size in (1, 3, 2)
    ]
    assert over_ranks(CUDA, readings, world=1000) == over_ranks(CUDA, readings)
    held = over_ranks(CUDA, readings)
    assert held == FullestRank({"peak_allocated": RankPeak(3 * 2**30, 1), "peak_reserved": RankPeak(4 * 2**30, 1)}, 6)
    assert held.metrics(SimpleNamespace(world_size=3)) == {
        "throughput/memory/peak_allocated": 3 * 2**30,
        "throughput/memory/peak_reserved": 4 * 2**30,
        "throughput/memory/fullest_rank": 1,
        "throughput/memory/allocator_retries": 6,
    }


def test_without_a_gpu_there_is_the_process_alone():
    held = over_ranks(CPU, [{"peak_rss": 512 * 9, "allocator_retries": 0}, {"peak_rss": 512 * 7, "allocator_retries": 0}])
    assert held.metrics(SimpleNamespace(world_size=2)) == {
        "throughput/memory/peak_rss": 4608,
        "throughput/memory/fullest_rank": 0,
    }
    assert held.metrics(SimpleNamespace(world_size=1)) == {"throughput/memory/peak_rss": 4608}


def test_a_reading_that_fails_ends_these_keys_alone(monkeypatch, caplog):
    def lost():
        raise OSError("no such process")

    monkeypatch.setattr(memory, "host_memory", lost)
    instruments = Instruments([MemoryPeaks(Place(rank=0, world=1), CPU)])
    assert instruments.lap() == {}
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["memory is not reported from here on"]
