"""Fine-tunings on two real ranks: what is counted, what is saved, what comes back; and what does not change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations

pytestmark = pytest.mark.slow

STEPS, FORK, ROWS, BATCH = 8, 4, 16, 4
Results = Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launch import HERE, launch

    folder = tmp_path_factory.mktemp("fine_tune")
    result = launch(2, str(HERE / "fine_tune_worker.py"), str(folder))
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return json.loads((folder / "results.json").read_text())


def rows_of(folder: Path) -> list[list[int]]:
    """Inputs of the sequences of each row in the packed file, as numpy reads it; a row is a micro-batch here."""
    rows = np.load(folder / "training.npy", allow_pickle=True)
    assert len(rows) == ROWS
    bounds = [[*row["seq_start_id"], len(row["input_ids"])] for row in rows]
    return [[end - start - 1 for start, end in pairwise(row)] for row in bounds]


RUNS = ("lora", "distributed", "some_layers", "dora", "frozen_parts")


@pytest.mark.parametrize("run", RUNS)
def test_totals_are_those_of_the_data_counted_one_by_one(folder: Path, results: Results, run: str) -> None:
    plan = compile_plan(load_recipe(folder / run / "config.yaml"), "exact")
    rows = rows_of(folder)
    epochs = STEPS * BATCH // ROWS
    assert results[run]["total_flops"] == epochs * sum(plan.flops(lengths) for lengths in rows)
    assert results[run]["total_tokens"] == epochs * sum(map(sum, rows))
    if run != "dora":  # which also multiplies its two matrices, once a forward pass
        one_by_one = sum(plan.flops([length]) for lengths in rows for length in lengths)
        assert results[run]["total_flops"] == epochs * one_by_one


@pytest.mark.parametrize("run", [*RUNS, "base", "tp2", "pp2", "distributed_tp2"])
def test_the_built_model_has_the_parameters_of_the_plan(results: Results, run: str) -> None:
    assert results[run]["verified"] == ["parameters", []]


def test_the_packed_file_tells_the_totals_before_the_run(folder: Path, results: Results) -> None:
    cfg = load_recipe(folder / "lora" / "config.yaml")
    assert STEPS * num_floating_point_operations(cfg, BATCH, convention="exact") == results["lora"]["total_flops"]


@pytest.mark.parametrize("run", RUNS)
def test_it_begins_with_the_base_and_learns(results: Results, run: str) -> None:
    losses = [loss for loss, _ in results[run]["rows"].values()]
    assert losses[0] == pytest.approx(results["lora"]["rows"]["1"][0], rel=1e-6)  # an adapter begins as nothing
    # Each half is an epoch: the same rows.
    assert sum(losses[FORK:]) < sum(losses[:FORK]) * (1 if run == "some_layers" else 0.97)


@pytest.mark.parametrize("run", ["lora", "distributed", "some_layers", "dora"])
def test_the_weights_below_the_adapters_stay_to_the_last_bit(results: Results, run: str) -> None:
    before, after = results[run]["weights"]
    assert before == after == results["base"]["weights"][-1]


def test_parts_that_are_not_frozen_change(results: Results) -> None:
    before, after = results["frozen_parts"]["weights"]
    assert before == results["base"]["weights"][-1]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if not any(p in name for p in ("embedding", "linear_qkv", "linear_fc1"))}


@pytest.mark.parametrize(
    ("run", "resumed"), [("lora", "started_again"), ("some_layers", "some_layers_resumed"), ("dora", "dora_resumed")]
)
def test_a_resumed_fine_tuning_equals_an_unbroken_one(results: Results, run: str, resumed: str) -> None:
    unbroken, continued = results[run], results[resumed]
    assert continued["code"] == 0, continued["console"]
    assert list(continued["rows"]) == ["5", "6", "7", "8"]
    for kind in ("rows", "evaluations"):
        assert continued[kind] == {step: unbroken[kind][step] for step in continued[kind]}
    assert continued["total_flops"] == unbroken["total_flops"]
    assert continued["total_tokens"] == unbroken["total_tokens"]
    assert results["died"]["code"] == 1


@pytest.mark.parametrize("layout", ["tp2", "pp2", "distributed_tp2"])
def test_it_goes_on_under_another_layout(results: Results, layout: str) -> None:
    unbroken, moved = results["lora"], results[layout]
    assert moved["code"] == 0, moved["console"]
    for step, (loss, norm) in moved["rows"].items():
        assert loss == pytest.approx(unbroken["rows"][step][0], rel=1e-5)
        assert norm == pytest.approx(unbroken["rows"][step][1], rel=1e-3)
    assert moved["total_flops"] == unbroken["total_flops"]


@pytest.mark.parametrize("run", ["lora", "distributed", "some_layers", "dora"])
def test_adapters_alone_are_saved(results: Results, run: str) -> None:
    keys = [key for key in results[f"{run}_saved"]["keys"] if "_extra_state" not in key]
    weights = [key for key in keys if not key.startswith("optimizer.")]
    assert weights
    assert all(".adapter." in key for key in keys)


def test_what_trains_without_adapters_is_saved_too(results: Results) -> None:
    keys = [key for key in results["frozen_parts_saved"]["keys"] if "_extra_state" not in key]
    assert not any(part in key for key in keys for part in ("embedding", "linear_qkv.weight", "linear_fc1.weight"))
    assert {"output_layer.weight", "decoder.final_layernorm.weight"} <= set(keys)


def test_the_share_that_trains_and_what_6nd_would_claim_are_shown(folder: Path, results: Results) -> None:
    parameters = compile_plan(load_recipe(folder / "lora" / "config.yaml"), "exact").parameters()
    console = results["lora"]["console"]
    assert f"({100 * parameters['trainable'] / parameters['total']:.3g}%)" in console
    assert "(6ND: " in console
    for row in results["lora"]["log"]:
        if "throughput/tflops/device" in row:
            claimed = 6 * parameters["total"] * row["throughput/device/tokens_per_sec"] / 1e12
            assert row["throughput/tflops/device_6nd"] == pytest.approx(claimed, rel=1e-12)
    assert not any("device_6nd" in key for row in results["base"]["log"] for key in row)
    assert "6ND" not in results["base"]["console"]


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        ("base_other", 1, "is not the base that these adapters were trained on"),
        ("base_damaged", 1, "is damaged (__0_0.distcp has changed since it was saved). Give another folder."),
        ("base_gone", 1, "no longer exists"),
        ("base_empty", 2, "holds no checkpoint to fine-tune. Train it first: torchrun"),
        ("base_nowhere", 2, "holds no checkpoint to fine-tune. Train it first: torchrun"),
        ("without_base", 1, "holds only the weights that were trained on top of"),
        ("with_all_weights", 1, "holds all weights, not those of a fine-tuning"),
    ],
)
def test_a_base_that_is_missing_or_another_one_is_one_message(results: Results, run: str, code: int, message: str) -> None:
    assert results[run]["code"] == code
    assert message in results[run]["console"]
    assert "Traceback" not in results[run]["console"]
    assert "checkpoint." in results[run]["console"]
