"""The plan's integer equals what torch counts while the model that ``bridge train`` builds looks at images and reads them."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.flops import compile_plan
from oracle.process import counted_by
from oracle.vision_training_cases import BATCHES, CASES, config

pytestmark = pytest.mark.all

pytest.importorskip("megatron.core")
pytest.importorskip("transformers")
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What is counted, case by case, and how far towers are from those of transformers: one process for all."""
    return counted_by("count_vision_training")


@pytest.mark.parametrize(("model", "frozen"), CASES)
def test_a_trained_model_costs_what_the_plan_says(model: str, frozen: str, measured: dict[str, Any]) -> None:
    found = measured["counted"][f"{model}/{frozen}"]
    plan = compile_plan(config(model, frozen), convention="executed")
    for name, images in BATCHES.items():
        batch = found[name]
        assert (len(batch["sequences"]), len(batch["patches"])) == (len(images), sum(images))
        assert plan.flops(batch["sequences"], batch["patches"], passes="forward") == batch["forward"], name
        executed = plan.flops(batch["sequences"], batch["patches"], passes="hardware")
        assert executed == batch["forward"] + batch["backward"], name
    assert plan.parameters()["total"] == found["parameters"]
    assert plan.parameters()["trainable"] == found["trainable"]


@pytest.mark.parametrize("tower", ["qwen2_5_vl", "qwen3_vl"])
def test_a_tower_is_the_published_one(tower: str, measured: dict[str, Any]) -> None:
    """Windows, deepstack, both kinds of positions: with the same weights the same tokens come out as in transformers."""
    assert measured["towers"][tower] < 1e-5
