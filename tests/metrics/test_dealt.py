"""Hybrid context parallelism on real ranks: megatron-core deals the samples out and runs its schedule, and each counts once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("megatron.core")

import callback_driver as driver
from launch import launch

from bridge.flops import compile_plan
from bridge.metrics.dealt import own_batches, place_of_dealt
from bridge.metrics.place import Place
from bridge.metrics.vector import REPLICA_WORK, VectorLayout

WORKER = Path(__file__).with_name("dealt_worker.py")


def run(ranks: int, folder: Path, *layouts: str) -> list[dict[str, Any]]:
    """What each rank found, by layout."""
    finished = launch(ranks, str(WORKER), str(folder), *layouts)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "does not show which; observe the input of HybridCPDataLoaderWrapper" in finished.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def check(ranks: list[dict[str, Any]], layout: str) -> None:
    found = [rank[layout] for rank in ranks]
    lengths = sum(found[0]["lengths"], [])
    # The first tensor ranks are given the data: every token ran on one of them.
    assert sum(rank["positions"] for rank in found) == sum(lengths)
    plan = compile_plan(driver.config(), "exact")
    for name in ("dealt", "before", "steps"):
        row = found[0]["rows"][name]
        assert all(rank["rows"][name]["throughput/total_flops"] == plan.flops(lengths) for rank in found)
        assert (row["throughput/total_tokens"], row["throughput/statistics/sequences"]) == (sum(lengths), len(lengths))
        assert "throughput/imbalance/data_parallel" not in row  # several ranks share a sample
    assert all(rank["rows"]["other"] == {} for rank in found)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(2, tmp_path_factory.mktemp("dealt"), "1,2", "1,1")


@pytest.mark.parametrize("layout", ["1,2", "1,1"])
def test_each_sample_counts_once(layout: str, two: list[dict[str, Any]]) -> None:
    """Two context ranks, and two replicas: the scheduler makes no difference between them."""
    check(two, layout)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(4, tmp_path_factory.mktemp("dealt"), "1,2", "2,2", "1,4")


@pytest.mark.all
@pytest.mark.parametrize("layout", ["1,2", "2,2", "1,4"])
def test_each_sample_counts_once_on_four_ranks(layout: str, four: list[dict[str, Any]]) -> None:
    """Replicas of two context ranks, or four context ranks: a sample runs on one, two or four; also with tensor ranks."""
    check(four, layout)


class State:
    """megatron-core's groups as one data and context rank of four sees them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def get_data_parallel_rank(self, with_context_parallel: bool) -> int:
        return self.rank


def test_the_first_rank_of_a_sample_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule of megatron-core's own scheduler for thirteen samples over four ranks, of which one takes 32 tokens."""
    schedule = pytest.importorskip("megatron.core.pipeline_parallel.hybrid_cp_schedule")
    lengths = [64, 16, 48, 64, 64, 48, 64, 16, 128, 64, 16, 64, 64]

    class Group:
        def size(self) -> int:
            return 4

    scheduler = schedule.BalancedCPScheduler(32, Group())
    _, groups = scheduler.get_groups_and_subsamples(list(enumerate(lengths)), None)
    shared = [len({rank for rank in range(4) if one in group[rank]}) for group in groups for one in set(sum(group, []))]
    assert set(shared) == {1, 2, 4}
    counted = []
    for rank in range(4):
        monkeypatch.setattr("bridge.metrics.dealt.parallel_state", lambda rank=rank: State(rank))
        mine = {one for group in groups for one in group[rank]}
        samples = {one: {"tokens": torch.zeros(lengths[one])} for one in mine}
        counted += [batch["tokens"].shape[1] for batch in own_batches((samples, groups))]
    assert sorted(counted) == sorted(lengths)


def test_ranks_without_data_count_nothing() -> None:
    assert own_batches(None) == own_batches((None, None)) == []


def test_without_megatron_cores_groups_nobody_tells() -> None:
    assert not place_of_dealt(Place()).dealt


def test_replicas_that_share_samples_have_no_work_of_their_own() -> None:
    assert REPLICA_WORK in VectorLayout((), Place(replicas=4))
    assert REPLICA_WORK not in VectorLayout((), Place(replicas=4, dealt=True))
