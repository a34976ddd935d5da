"""The same training on every parallel layout: losses, gradient norms, tokens and FLOPs.

One rank trains each model without a break and saves at step 1.  Every layout loads that checkpoint, cut in its own way,
and trains the remaining steps on the same global batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import worker_cases as cases

pytestmark = pytest.mark.slow

Scenario = Callable[[str, int], dict[str, Any]]


def agree(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert found["code"] == 0, found["console"]
    assert sorted(found["rows"]) == [str(step) for step in range(cases.FORK + 1, cases.STEPS + 1)]
    for step, (loss, norm) in found["rows"].items():
        expected_loss, expected_norm = reference["rows"][step]
        assert loss == pytest.approx(expected_loss, rel=1e-6), step
        assert norm == pytest.approx(expected_norm, rel=1e-5), step
    assert found["verified"] == reference["verified"] == ["parameters", []]
    assert found["total_flops"] == reference["total_flops"]
    assert found["total_tokens"] == reference["total_tokens"]


@pytest.mark.parametrize("name", cases.ON_TWO_RANKS)
def test_two_ranks_train_as_one(scenario: Scenario, name: str) -> None:
    reference = scenario("references", 1)[name.rpartition("/")[0]]
    agree(scenario("two", 2)[name], reference)


@pytest.mark.all
@pytest.mark.parametrize("name", cases.MORE_ON_TWO_RANKS)
def test_two_ranks_train_as_one_on_further_layouts(scenario: Scenario, name: str) -> None:
    reference = scenario("references", 1)[name.rpartition("/")[0]]
    agree(scenario("more_on_two", 2)[name], reference)


@pytest.mark.all
@pytest.mark.parametrize("name", cases.ON_FOUR_RANKS)
def test_four_ranks_train_as_one(scenario: Scenario, name: str) -> None:
    reference = scenario("references", 1)[name.rpartition("/")[0]]
    agree(scenario("four", 4)[name], reference)


@pytest.mark.parametrize("name", cases.REFERENCES)
def test_the_loss_falls(scenario: Scenario, name: str) -> None:
    result = scenario("references", 1)[name]
    assert result["code"] == 0, result["console"]
    losses = [result["rows"][str(step)][0] for step in range(1, cases.STEPS + 1)]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)  # a fresh model knows nothing
    assert losses == sorted(losses, reverse=True)


@pytest.mark.all
@pytest.mark.parametrize("model", ["dense", "mla", "window", "moe"])
def test_a_pack_is_its_documents_one_by_one(scenario: Scenario, model: str) -> None:
    results = scenario("packing", 1)
    (packed,), (single,) = (results[f"{model}/{kind}"]["rows"].values() for kind in ("packed", "single"))
    assert packed[0] == pytest.approx(single[0], rel=1e-7)
    assert packed[1] == pytest.approx(single[1], rel=1e-6)
    assert results[f"{model}/packed"]["total_flops"] == results[f"{model}/single"]["total_flops"]
    assert results[f"{model}/packed"]["total_tokens"] == results[f"{model}/single"]["total_tokens"]
