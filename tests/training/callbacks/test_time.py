"""Where the time of real steps goes: delays in known places of two and four ranks turn up in their part, and the parts add up."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import time_worker
from launch import launch

from bridge.metrics.time_parts import PARTS

HERE = Path(__file__).parent
MICRO_BATCHES = time_worker.MICRO_BATCHES
#: Milliseconds a step.
ALL = 1e3 * time_worker.DELAY * MICRO_BATCHES
pytestmark = [pytest.mark.all, pytest.mark.slow]

#: Of what was injected: a sleep is measured where it happens, so a part must show it, whatever the machine does beside.
STRICT = 0.05


def run(scenario: str, ranks: int, folder: Path) -> dict:
    finished = launch(ranks, str(HERE / "time_worker.py"), scenario, str(folder), timeout=300)
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


def typical(rows: list[dict], delayed: bool) -> dict[str, float]:
    """Milliseconds by part, medians of the steps with or without a delay."""
    found = [times(row) for row in rows[1:] if (row["step"] % 2 == 1) == delayed]
    return {name: median(parts[name] for parts in found) for name in found[0]}


def added(rows: list[dict]) -> dict[str, float]:
    """Milliseconds that the delayed steps took longer, by part."""
    slow, quick = typical(rows, True), typical(rows, False)
    return {name: slow[name] - quick[name] for name in slow}


def slept(rows: list[dict]) -> list[float]:
    """Milliseconds that each rank really slept in a delayed step, the median; never in another one."""
    assert all(max(row["slept"]) == 0 for row in rows if row["step"] % 2 == 0)
    delayed = [row["slept"] for row in rows[1:] if row["step"] % 2 == 1]
    return [1e3 * median(one) for one in zip(*delayed, strict=True)]


def test_parts_add_up_on_two_ranks(two):
    for name, rows in two.items():
        if name != "witness":
            check_sums(rows)


@pytest.mark.parametrize(
    ("case", "part", "one_rank", "at_least"),
    [
        ("data", "data", True, ALL),
        ("forward", "kernels", True, ALL),
        ("optimizer", "optimizer", False, ALL / MICRO_BATCHES),  # once a step, on both
        ("gradients", "communication", False, ALL),
    ],
)
def test_a_delay_is_in_its_part_and_the_waiting_for_it_is_imbalance(two, case, part, one_rank, at_least):
    """Of one rank in two: half of its delay in its own part, and half the other one waits."""
    found, delays = added(two[case]), slept(two[case])
    assert max(delays) >= at_least
    assert (min(delays) == 0) == one_rank
    whole, own = max(delays), sum(delays) / 2
    assert found[part] == pytest.approx(own, rel=STRICT)
    others = whole - own
    assert found["imbalance"] == pytest.approx(others, abs=STRICT * whole)
    for name in found.keys() - {part, "imbalance"}:
        assert abs(found[name]) < STRICT * whole, name


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
        # (p - 1) / v passes of a micro-batch, by hand of the sleeping alone.
        ("even, 4", 3 * 300, 0),
        ("even, 16", 3 * 300, 0),
        ("interleaved", 3 / 2 * 300, 0),
        ("third", 3 * 225, 285),  # 31 x 60 ms in all, of which the mean stage is busy 900
    ],
)
def test_a_pipeline_waits_for_its_schedule(four, case, bubble, imbalance):
    """What the model itself computes, and how long a sleep is overslept, is measured and comes on top."""
    rows = four[case][1:]
    parts = [times(row) for row in rows]
    found = {name: median(one[name] for one in parts) for name in parts[0]}
    step = sum(found.values())
    busy, told = found["ideal"] + found["kernels"], BUSY[case]
    overslept = median(1e3 * sum(row["slept"]) / 4 for row in rows) - told
    assert 0 <= overslept < STRICT * told
    assert 0 <= busy - told - overslept < 0.5 * told  # the model's own, on cores that the ranks share
    assert found["bubble"] == pytest.approx(bubble * busy / told, rel=STRICT)
    assert found["imbalance"] == pytest.approx(imbalance * busy / told, abs=STRICT * step)
    waited = found["bubble"] + found["imbalance"] + found["communication"]
    assert busy + waited == pytest.approx(step, rel=0.15)  # the optimizer and the host take the rest


#: Milliseconds that the mean stage sleeps in a step.
BUSY = {"even, 4": 4 * 300, "even, 16": 16 * 300, "interleaved": 8 * 150 * 2, "third": 4 * 225}


def test_a_slow_replica_of_a_pipeline_is_imbalance(four):
    """One rank of four is late: a quarter in the mean of its own, and the three others wait."""
    found, delays = added(four["dp2pp2"]), slept(four["dp2pp2"])
    assert [delay > 0 for delay in delays] == [False, True, False, False]
    whole = max(delays)
    assert found["kernels"] == pytest.approx(whole / 4, abs=STRICT * whole)
    assert found["imbalance"] + found["bubble"] + found["communication"] == pytest.approx(3 * whole / 4, abs=STRICT * whole)
    assert found["imbalance"] > found["communication"]
