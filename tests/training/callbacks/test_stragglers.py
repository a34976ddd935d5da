"""Real ranks: one that computes longer for the same work, one that gets more work, and one that lingers outside of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import launch

from bridge.flops import compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.metrics.interval import pipeline_stages
from bridge.metrics.place import Place
from bridge.metrics.stragglers import _WORTH_TELLING

HERE = Path(__file__).parent
#: Below this lies what a busy machine does to the processor time of equal work; the slow rank takes 1.8 of the mean.
NOISE = 1.45


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks saw, by case."""
    folder = tmp_path_factory.mktemp("stragglers")
    finished = launch(2, str(HERE / "straggler_worker.py"), str(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def of(row: dict) -> dict:
    """The keys of a row that this is about."""
    words = ("compute", "imbalance", "energy", "joule", "power")
    return {key.removeprefix("throughput/"): value for key, value in row.items() if any(word in key for word in words)}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["balanced", "slow", "data", "paused"])
def test_every_rank_reports_the_same_and_no_energy_without_a_gpu(ranks, case):
    first, second = (of(rank[case]["row"]) for rank in ranks)
    assert first == second
    assert first.keys() == {
        "compute_time/mean",
        "compute_time/max",
        "compute_time/slowest_rank",
        "compute_time/slowest_data_parallel",
        "imbalance/compute",
        "imbalance/work",
        "imbalance/device",
        "imbalance/data_parallel",
    }
    assert first["imbalance/compute"] == pytest.approx(first["compute_time/max"] / first["compute_time/mean"])
    assert ranks[1][case]["told"] == []


@pytest.mark.slow
def test_a_rank_that_computes_longer_for_the_same_work_is_a_slow_device(ranks):
    row = of(ranks[0]["slow"]["row"])
    assert (row["compute_time/slowest_rank"], row["compute_time/slowest_data_parallel"]) == (1, 1)
    assert row["imbalance/work"] == 1.0
    assert row["imbalance/device"] == row["imbalance/compute"] > 1.3
    (line,) = ranks[0]["slow"]["told"]
    assert "rank 1 (data_parallel 1)" in line
    assert "slow device" in line


@pytest.mark.slow
def test_a_rank_that_gets_longer_data_is_not(ranks):
    row = of(ranks[0]["data"]["row"])
    assert row["compute_time/slowest_rank"] == 1
    assert row["imbalance/work"] == row["imbalance/data_parallel"] == 2 * 64 / (64 + 8)
    assert row["imbalance/compute"] > 1.3
    assert row["imbalance/device"] < NOISE
    (line,) = ranks[0]["data"]["told"]
    assert "longer data" in line


@pytest.mark.slow
@pytest.mark.parametrize("case", ["balanced", "paused"])
def test_equal_ranks_are_told_apart_by_neither_nor_by_what_they_do_outside_of_steps(ranks, case):
    row = of(ranks[0][case]["row"])
    assert row["imbalance/work"] == 1.0
    assert row["imbalance/compute"] < NOISE
    assert bool(ranks[0][case]["told"]) is (row["imbalance/compute"] >= _WORTH_TELLING)


@pytest.mark.slow
def test_in_a_job_of_more_ranks_than_are_listed_a_maximum_finds_the_slowest(ranks):
    row, other = (of(rank["too many to list"]["row"]) for rank in ranks)
    assert row == other
    assert (row["compute_time/slowest_rank"], row["compute_time/slowest_data_parallel"]) == (1, 1)
    assert row["imbalance/work"] == pytest.approx(2 * 32 / (32 + 8))  # it has the most work, too
    assert 1.6 < row["imbalance/compute"] <= 2  # of two ranks, one cannot take more than both together


FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"


MODEL = {"num_layers": 4, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 16}


def layout_of(place: Place, parallel: dict | None = None, **model: object) -> PipelineLayout:
    return pipeline_stages(compile_plan({"model": {**MODEL, **model}, "parallel": parallel}), place)


def test_the_groups_say_how_many_stages_there_are_and_the_configuration_what_is_on_them():
    three = Place(pipeline=3)
    uneven = PipelineLayout(pipeline_model_parallel_size=3, num_layers_in_first_pipeline_stage=1)
    assert layout_of(three, {FIRST: 1}) == layout_of(three, **{FIRST: 1}) == uneven
    # Megatron-LM's names
    assert layout_of(three, decoder_first_pipeline_num_layers=1) == uneven
    interleaved = Place(pipeline=2, virtual=2)
    assert layout_of(interleaved, pipeline_model_parallel_layout="Et|t|t|tL").place(4).layers == (0, 1, 0, 1)
    hybrid = layout_of(Place(pipeline=2), hybrid_layer_pattern="M|M*-", mamba_num_heads=1)
    assert hybrid.place(4).layers == (0, 1, 1, 1)
