"""Where the time of real steps goes: delays in known places of two and four ranks turn up in their part, and the parts add up."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import time_worker
from launch import torchrun

from bridge.metrics.time_parts import PARTS

HERE = Path(__file__).parent
pytestmark = [pytest.mark.all, pytest.mark.slow]

#: Milliseconds that a busy machine adds to what nobody has slowed down, in medians of five steps.
NOISE = 45
ALL = 1e3 * time_worker.DELAY * time_worker.MICRO_BATCHES


def run(scenario: str, ranks: int, folder: Path) -> dict:
    finished = torchrun(ranks, str(HERE / "time_worker.py"), scenario, str(folder), timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads((folder / f"{scenario}.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict:
    return run("two", 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> dict:
    return run("four", 4, tmp_path_factory.mktemp("four"))


def times(row: dict) -> dict[str, float]:
    """Milliseconds by part."""
    return {name: 1e3 * row[f"throughput/time/{name}"] for name in PARTS if f"throughput/time/{name}" in row}


def check_sums(rows: list[dict]) -> None:
    """All rows but that of the first step, which is warm-up."""
    assert "throughput/step_time" not in rows[0]
    for row in rows[1:]:
        parts = times(row)
        assert parts.keys() == PARTS.keys() - {"compute"}
        assert sum(parts.values()) == pytest.approx(1e3 * row["throughput/step_time"], rel=1e-9)
        assert sum(row[f"throughput/time_fraction/{name}"] for name in parts) == pytest.approx(1, rel=1e-9)
        assert row["throughput/time_fraction/ideal"] == pytest.approx(row["throughput/mfu"], rel=1e-9)
        # What is not measured but left over: nothing that was measured is counted twice.
        assert parts["host"] >= -0.02 * sum(parts.values())


def added(rows: list[dict]) -> dict[str, float]:
    """Milliseconds that the delayed steps took longer, by part; kernels and work are one."""
    parts = [(row["step"], times(row)) for row in rows[1:]]

    def typical(name: str, which: int) -> float:
        return median(found[name] for step, found in parts if step % 2 == which)

    return {name: typical(name, 1) - typical(name, 0) for name in parts[0][1]}


def test_parts_add_up_on_two_ranks(two):
    for name, rows in two.items():
        if name != "witness":
            check_sums(rows)


@pytest.mark.parametrize(
    ("case", "part", "own", "others"),
    [
        ("data", "data", ALL / 2, ALL / 2),  # of one rank in two: half in its own part, and half the other one waits
        ("forward", "kernels", ALL / 2, ALL / 2),
        ("optimizer", "optimizer", ALL / 2, 0),  # once a step, on both
        ("gradients", "communication", ALL, 0),
    ],
)
def test_a_delay_is_in_its_part_and_the_waiting_for_it_is_imbalance(two, case, part, own, others):
    found = added(two[case])
    assert found[part] == pytest.approx(own, rel=0.05, abs=NOISE / 2)
    assert found["imbalance"] == pytest.approx(others, rel=0.05, abs=NOISE)
    for name in found.keys() - {part, "imbalance"}:
        assert abs(found[name]) < NOISE, name


def test_tensor_ranks_wait_inside_their_passes(two):
    parts = [times(row) for row in two["tp2"][1:]]
    within = [found["communication"] + found["imbalance"] for found in parts]
    assert median(within) > 0.2 * median(found["kernels"] for found in parts)


def test_the_profiler_saw_the_same_collectives(two):
    """What gloo's own threads take is not compared: on a busy machine they begin late, and end late."""
    seen = two["witness"]
    assert len(seen["waits"]) == 4  # steps 2 to 5, of which rank 1 comes 50 ms late to 3 and 5
    assert seen["collectives"] >= 4 * 5
    assert sum(seen["waits"]) == pytest.approx(seen["waited"], rel=0.05, abs=0.01)


def test_parts_add_up_on_four_ranks(four):
    for rows in four.values():
        check_sums(rows)


@pytest.mark.parametrize(
    ("case", "bubble", "imbalance"),
    [
        # (p - 1) / v passes of a micro-batch, by hand of the sleeping alone: what the model computes comes on top.
        ("even, 4", 3 * 60, 0),
        ("even, 16", 3 * 30, 0),
        ("interleaved", 3 / 2 * 60, 0),
        ("third", 3 * 56.25, 71.25),  # 31 x 15 ms in all, of which the mean stage is busy 225
    ],
)
def test_a_pipeline_waits_for_its_schedule(four, case, bubble, imbalance):
    parts = [times(row) for row in four[case][1:]]
    found = {name: median(one[name] for one in parts) for name in parts[0]}
    assert bubble <= found["bubble"] <= 1.8 * bubble
    assert found["imbalance"] >= 0.6 * imbalance
    busy = found["ideal"] + found["kernels"]
    waited = found["bubble"] + found["imbalance"] + found["communication"]
    assert busy + waited == pytest.approx(sum(found.values()), rel=0.15)


def test_a_slow_replica_of_a_pipeline_is_imbalance(four):
    """200 ms on one of four ranks: 50 in the mean of its own, and the three others wait."""
    found = added(four["dp2pp2"])
    assert found["kernels"] == pytest.approx(50, abs=NOISE)
    assert found["imbalance"] + found["bubble"] + found["communication"] == pytest.approx(150, abs=2 * NOISE)
    assert found["imbalance"] > found["communication"]
