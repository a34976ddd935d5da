"""Broken off and continued: the same numbers as without a break, to the last bit.

The runs have what makes this hard: dropout, a batch-size ramp-up, skipped steps, evaluations in between, a worker process
for the data, a learning-rate warm-up; a signal on the second rank ends the first part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Scenario = Callable[[str, int], dict[str, Any]]


@pytest.mark.all(but=["distributed"])
@pytest.mark.parametrize("kind", ["plain", "distributed"])
def test_a_resumed_run_equals_an_unbroken_one(scenario: Scenario, kind: str) -> None:
    results = scenario(kind, 2)
    unbroken, stopped, continued = (results[part] for part in ("unbroken", "stopped", "continued"))
    for part in (unbroken, stopped, continued):
        assert part["code"] == 0, part["console"]
    assert not stopped["rows"].keys() & continued["rows"].keys()
    both = {**stopped["rows"], **continued["rows"]}
    assert {step: row for step, row in both.items() if not math.isnan(row[0])} == {
        step: row for step, row in unbroken["rows"].items() if not math.isnan(row[0])
    }
    assert {**stopped["evaluations"], **continued["evaluations"]} == unbroken["evaluations"]
    assert continued["total_flops"] == unbroken["total_flops"]
    assert continued["total_tokens"] == unbroken["total_tokens"]


@pytest.mark.all(but=["distributed"])
@pytest.mark.parametrize("kind", ["plain", "distributed"])
def test_a_signal_on_any_rank_ends_all_of_them_soon_with_a_checkpoint(scenario: Scenario, kind: str) -> None:
    stopped = scenario(kind, 2)["stopped"]
    assert max(map(int, stopped["rows"])) == 6  # sent in step 4, agreed upon in step 5, read in step 6
    assert "ending after step 6" in stopped["console"]
    assert scenario(kind, 2)["saved"]["names"] == ["latest", "step_0000004", "step_0000006"]  # keep=2


@pytest.mark.all(but=["distributed"])
@pytest.mark.parametrize("kind", ["plain", "distributed"])
def test_skipped_steps_consume_their_samples_and_train_nothing(scenario: Scenario, kind: str) -> None:
    unbroken = scenario(kind, 2)["unbroken"]
    assert [step for step, row in unbroken["rows"].items() if math.isnan(row[0])] == ["2", "7"]


def test_the_distributed_optimizer_goes_on_under_another_layout(scenario: Scenario) -> None:
    results = scenario("distributed", 2)
    stays, moves = results["stays"], results["moved"]
    assert stays["code"] == moves["code"] == 0, moves["console"]
    for step in ("5", "6", "8"):
        assert moves["rows"][step][0] == pytest.approx(stays["rows"][step][0], rel=1e-6)
        assert moves["rows"][step][1] == pytest.approx(stays["rows"][step][1], rel=1e-5)
    assert moves["total_flops"] == stays["total_flops"] == results["unbroken"]["total_flops"]
