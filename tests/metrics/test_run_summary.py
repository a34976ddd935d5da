"""A run in one row: medians of rates, sums of amounts, the last totals, and parts that still add up."""

from __future__ import annotations

import pytest

from bridge.metrics.run_summary import RunSummary

ROWS = (
    {
        "throughput/mfu": 0.10,
        "throughput/step_time": 3.0,
        "throughput/flops/mlp": 2**60,
        "throughput/total_flops": 2**60 + 1,
        "throughput/time/ideal": 0.5,
        "throughput/time/host": 2.5,
        "throughput/time_fraction/ideal": 0.2,
        "lm loss": 1.0,
    },
    {
        "throughput/mfu": 0.30,
        "throughput/step_time": 1.0,
        "throughput/flops/mlp": 1,
        "throughput/total_flops": 2**61,
        "throughput/time/ideal": 0.5,
        "throughput/time/host": 0.5,
        "throughput/time_fraction/ideal": 0.5,
    },
    {
        "throughput/mfu": 0.31,
        "throughput/step_time": 1.0,
        "throughput/flops/mlp": 3,
        "throughput/total_flops": 2**61 + 1,
        "throughput/time/ideal": 0.2,
        "throughput/time/host": 0.3,
        "throughput/time_fraction/ideal": 0.4,
        "throughput/incomplete": 1,
    },
)


def test_a_run_is_not_its_last_interval():
    summary = RunSummary()
    for row in ROWS:
        summary.add(row)
    assert summary.values() == {
        "throughput/mfu": 0.30,
        "throughput/step_time": 1.0,
        "throughput/flops/mlp": 2**60 + 4,
        "throughput/total_flops": 2**61 + 1,
        "throughput/incomplete": 1,
        "throughput/time/ideal": pytest.approx(0.4),
        "throughput/time/host": pytest.approx(1.1),
        "throughput/time_fraction/ideal": pytest.approx(0.4 / 1.5),
        "throughput/time_fraction/host": pytest.approx(1.1 / 1.5),
    }


def test_a_part_that_some_rows_have_not_is_left_out_and_no_rows_say_nothing():
    summary = RunSummary()
    assert summary.values() == {}
    summary.add({"throughput/time/ideal": 1.0, "throughput/time/compute": 2.0})
    summary.add({"throughput/time/ideal": 3.0})
    assert summary.parts() == {"ideal": 2.0}
