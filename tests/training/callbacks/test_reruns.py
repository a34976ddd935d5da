"""Iterations that megatron-core's rerun state machine runs again: its own data iterator, replayed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import callback_driver as driver
import pytest

machine = pytest.importorskip("megatron.core.rerun_state_machine")

from bridge.flops import compile_plan  # noqa: E402
from bridge.training.callbacks import ThroughputCallback  # noqa: E402

LENGTHS = [[10, 20], [30], [5, 5, 5], [64], [7], [8], [9], [50]]


@pytest.fixture
def validating() -> Iterator[None]:
    machine.destroy_rerun_state_machine()
    machine.initialize_rerun_state_machine(mode=machine.RerunMode.VALIDATE_RESULTS)
    yield
    machine.destroy_rerun_state_machine()


def run(replays: int) -> dict[str, Any]:
    """Four steps of two micro-batches; the third one runs so many times more."""
    callback = ThroughputCallback("exact", log_interval=4, peak_flops=1e15, compute_time=False, energy=False)
    data = machine.RerunDataIterator(iter(map(driver.packed, LENGTHS)))
    model = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    loop = driver.Loop([callback], driver.state(driver.config(**model), hardware=SimpleNamespace()), data).start()
    for step in range(4):
        loop.fire("on_train_step_start")
        for again in range(1 + replays * (step == 2)):
            if again:
                data.rewind()
            loop.take()
            loop.take()
        data.advance()
        loop.fire("on_train_step_end", loss_dict={}, grad_norm=1.0, skipped_iter=False)
        loop.state.train_state.step += 1
    loop.end()
    return callback.latest


def test_what_runs_again_is_hardware_work(validating: None) -> None:
    plan = compile_plan(driver.config(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1), "exact")
    once, twice_more = run(0), run(2)
    assert "throughput/rerun_flops" not in once
    assert twice_more["throughput/total_flops"] == once["throughput/total_flops"] == sum(map(plan.flops, LENGTHS))
    assert twice_more["throughput/total_tokens"] == sum(map(sum, LENGTHS))
    again = 2 * sum(plan.flops(lengths, passes="hardware") for lengths in LENGTHS[4:6])
    assert twice_more["throughput/rerun_flops"] == again
    timed = LENGTHS[2:]  # the first step is warm-up
    model, hardware = (sum(plan.flops(lengths, passes=passes) for lengths in timed) for passes in ("training", "hardware"))
    ratio = twice_more["throughput/hfu"] / twice_more["throughput/mfu"]
    assert ratio == pytest.approx((hardware + again) / model)


def test_without_the_machine_nothing_is_declared() -> None:
    machine.destroy_rerun_state_machine()
    machine.initialize_rerun_state_machine(mode=machine.RerunMode.DISABLED)
    assert "throughput/rerun_flops" not in run(0)
    machine.destroy_rerun_state_machine()


def test_a_schedule_of_its_own_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    callback = ThroughputCallback("exact", log_interval=1, peak_flops=1e15, compute_time=False, energy=False)
    cfg = driver.config(hybrid_context_parallel=True)
    driver.Loop([callback], driver.state(cfg), iter(map(driver.packed, LENGTHS))).start().steps(2).end()
    assert "hybrid_context_parallel=True: its schedule gives each context rank its own sequences" in caplog.text
    assert "throughput/total_flops" not in callback.latest
