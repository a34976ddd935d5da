"""1,024 and 16,384 ranks, one at a time: who contributes, what the vector looks like, what is sent."""

from __future__ import annotations

import json
from pathlib import Path

import callback_driver as driver
import pytest
from launch import launch

pytestmark = pytest.mark.all

HERE = Path(__file__).parent
CASES = [
    {"ranks": 1024, "tp": 8, "pp": 4, "look_at": [0, 1, 8, 248, 256, 1023]},
    {"ranks": 1024, "tp": 4, "pp": 8, "vpp": 2, "cp": 2, "ep": 8, "look_at": [0, 4, 8, 128]},
    {"ranks": 1024, "look_at": [0, 1, 1023]},
    {"ranks": 16384, "tp": 8, "pp": 16, "cp": 4, "ep": 32, "look_at": [0, 32, 1023, 16383]},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "cases.json").write_text(json.dumps(CASES))
    finished = launch(1, str(HERE / "simulated_worker.py"), str(folder / "cases.json"), str(folder / "results.json"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def coordinates(case, rank):
    """Tensor, context, data and pipeline rank: megatron-core counts them in this order, tensor ranks first."""
    sizes = [case.get("tp", 1), case.get("cp", 1)]
    sizes += [case["ranks"] // (sizes[0] * sizes[1] * case.get("pp", 1)), case.get("pp", 1)]
    places = []
    for size in sizes:
        places.append(rank % size)
        rank //= size
    return places, sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_exactly_one_rank_of_each_replica_contributes(results, number):
    case = CASES[number]
    speakers = set()
    for rank in range(case["ranks"]):
        (tensor, context, data, pipeline), replicas = coordinates(case, rank)
        if tensor == context == pipeline == 0:
            speakers.add((rank, data))
    assert sorted(data for _, data in speakers) == list(range(replicas))
    for seen in results[number]:
        (tensor, context, data, pipeline), _ = coordinates(case, seen["rank"])
        assert seen["speaks"] == ((seen["rank"], data) in speakers)
        assert (seen["replica"], seen["replicas"]) == (data, replicas)
        known = {"tensor": tensor, "context": context, "data_parallel": data, "pipeline": pipeline}
        known["expert"] = seen["rank"] // case.get("tp", 1) % case.get("ep", 1)
        assert seen["place"] == {name: known[name] for name in seen["place"]}
        assert all(index == 0 for name, index in known.items() if name not in seen["place"])
        fed = sum(map(sum, driver.draw(seen["rank"], 40)))
        assert seen["tokens"] == (fed if seen["speaks"] else 0)  # this group's sums leave numbers as they are


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_vector_is_the_same_on_every_rank_and_small(results, number):
    case, seen = CASES[number], results[number]
    assert all(rank["names"] == seen[0]["names"] for rank in seen)
    replicas = seen[0]["replicas"]
    slots = sum(name.startswith("replica_work") for name in seen[0]["names"])
    assert slots == (replicas if replicas <= 64 else 0)
    for rank in seen:
        size = 2 * 8 * len(seen[0]["names"])  # two int64 limbs
        # The first carries the warm-up step apart, each one the sampled steps; one per log interval, beside it two int64 or
        # three of which the largest is wanted: compute time, memory, and work where no replica has an entry of its own.
        largest = 8 * (2 + (replicas > 64))
        assert rank["sums"] == [[bytes // 8, "torch.int64"] for bytes in (3 * size, largest, 2 * size, largest)]
        assert size <= 1400, case
