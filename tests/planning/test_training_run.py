"""Planning arithmetic against numbers worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops import ConfigError
from bridge.planning.training_run import (
    Cluster,
    Range,
    TrainingRun,
    chinchilla_tokens,
    compute_optimal,
    optimal_batch_tokens,
    pipeline_bound,
    steps,
    within_budget,
)

#: 100 devices of 1 PFLOP/s, of which 40% become model FLOPs: 4e16 FLOP/s, 1.44e18 FLOP per device hour.
CLUSTER = Cluster(Range.of(100), 1e15, Range.of(Fraction(2, 5)), price=Range.of(2), power=Range.of(1000))


def test_a_run_by_hand():
    # 1e12 tokens of 6e10 FLOP: 6e22 FLOP in 1.5e6 s.
    run = TrainingRun(60_000_000_000, Range.of(10**12), CLUSTER)
    assert run.flops == Range.of(6 * 10**22)
    assert float(run.days.low) == pytest.approx(1.5e6 / 86400)
    assert float(run.device_hours.low) == pytest.approx(1.5e8 / 3600)
    assert float(run.energy.low) == pytest.approx(1.5e8 / 3600)  # 1 kW each
    assert float(run.cost.low) == pytest.approx(2 * 1.5e8 / 3600)
    assert run.days.is_known


def test_total_flops_are_exact():
    run = TrainingRun(Fraction(1, 3), Range.of(3 * 10**30), CLUSTER)
    assert run.flops == Range.of(10**30)


def test_a_range_of_mfu_is_a_range_of_days():
    cluster = Cluster(Range.of(100), 1e15, Range(0.25, 0.5))
    run = TrainingRun(60_000_000_000, Range.of(10**12), cluster)
    assert (float(run.days.low), float(run.days.high)) == pytest.approx((1.2e6 / 86400, 2.4e6 / 86400))
    assert (run.energy, run.cost) == (None, None)


@pytest.mark.parametrize(
    ("amount", "unit"),
    [(6 * 10**22, "flop"), (1.5e6 / 86400, "days"), (1.5e8 / 3600, "device-hours"), (3e8 / 3600, "money"), (1.5e8 / 3600, "kwh")],
)
def test_every_budget_buys_the_same_run(amount, unit):
    run = within_budget(60_000_000_000, Range.of(amount), unit, CLUSTER)
    assert float(run.tokens.low) == pytest.approx(1e12, rel=1e-9)
    assert isinstance(run.tokens.low, int)


def test_a_budget_never_buys_more_than_it_pays_for():
    run = within_budget(7, Range.of(20), "flop", CLUSTER)
    assert (run.tokens, run.flops) == (Range.of(2), Range.of(14))


def test_budgets_need_what_they_are_paid_in():
    bare = Cluster(Range.of(1), 1e15, Range.of(0.4))
    for unit, word in (("money", "give price"), ("kwh", "give power"), ("euros", "give it in one of flop, days")):
        with pytest.raises(ConfigError, match=word):
            within_budget(1, Range.of(1), unit, bare)


def test_steps_round_up():
    assert steps(Range(1000, 1001), 100) == Range(10, 11)
    # Over 2^53, where a float would round.
    assert steps(Range.of(2**60 + 1), 2**10) == Range.of(2**50 + 1)


def test_the_batch_of_lowest_loss():
    # 0.2920 x (1e20)^0.3271 = 0.2920 x 10^6.542
    assert optimal_batch_tokens(Range.of(10**20)).low == pytest.approx(0.2920 * 10**6.542)


def test_chinchilla_itself():
    # 70 billion parameters, 1.4 trillion tokens.
    assert chinchilla_tokens(70_000_000_000) == 1_400_000_000_000
    best = compute_optimal(Range.of(6 * 70_000_000_000 * 1_400_000_000_000))
    assert (best.parameters.low, best.tokens.low) == pytest.approx((70e9, 1.4e12))


@pytest.mark.parametrize(
    ("stages", "micro_batches", "chunks", "bubble"),
    [
        ([5], 3, 1, 0),
        ([7, 7, 7, 7], 8, 1, Fraction(3, 8 + 3)),  # (p - 1) / (m + p - 1)
        ([7, 7, 7, 7], 8, 2, Fraction(3, 16 + 3)),  # interleaved
        ([7, 7, 7, 7], 1, 1, Fraction(3, 4)),
        # m = 2, micro-batches of 1, 1, 2: the last stage works 4, after 2 of filling and draining; 8 of 18 work.
        ([2, 2, 4], 2, 1, 1 - Fraction(8, 18)),
        # The first stage is the largest: no one waits longer than it works.
        ([40, 2, 2], 2, 1, 1 - Fraction(44, 120)),
    ],
)
def test_bubbles_by_hand(stages, micro_batches, chunks, bubble):
    bound = pipeline_bound(stages, micro_batches, chunks)
    assert bound.bubble == pytest.approx(float(bubble))
    assert bound.efficiency == pytest.approx(1 - float(bubble))
    assert bound.imbalance == pytest.approx(max(stages) * len(stages) / sum(stages))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 3))
def test_a_simulated_schedule_is_never_faster_than_the_bound(work, micro_batches, forward_parts):
    """One forward, one backward, run event by event on unequal stages: a backward takes twice as long as a forward."""
    forward = [Fraction(w * forward_parts) for w in work]
    time = simulate(forward, [2 * f for f in forward], micro_batches)
    total = [3 * f * micro_batches for f in forward]
    bound = pipeline_bound(total, micro_batches)
    assert float(sum(total) / len(work) / time) <= bound.efficiency + 1e-12


def test_the_bound_is_reached_by_equal_stages():
    for stages, micro_batches in ((4, 8), (3, 3), (5, 2)):
        time = simulate([Fraction(1)] * stages, [Fraction(2)] * stages, micro_batches)
        assert pipeline_bound([3 * micro_batches] * stages, micro_batches).efficiency == pytest.approx(
            float(3 * micro_batches / time)
        )


def simulate(forward, backward, micro_batches):
    """The time of a 1F1B step: every stage runs its passes in order, each when its input is there."""
    stages = len(forward)
    orders = []
    for stage in range(stages):
        warm_up = min(stages - 1 - stage, micro_batches)
        order = [("f", i) for i in range(warm_up)]
        for i in range(micro_batches - warm_up):
            order += [("f", warm_up + i), ("b", i)]
        orders.append(order + [("b", i) for i in range(micro_batches - warm_up, micro_batches)])
    done, clock, at = {}, [Fraction(0)] * stages, [0] * stages
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while at[stage] < len(orders[stage]):
                kind, i = orders[stage][at[stage]]
                if kind == "f":
                    needed = ("f", stage - 1, i) if stage else None
                else:
                    needed = ("b", stage + 1, i) if stage + 1 < stages else ("f", stage, i)
                if needed is not None and needed not in done:
                    break
                start = max(clock[stage], done[needed] if needed else Fraction(0))
                clock[stage] = done[kind, stage, i] = start + (forward if kind == "f" else backward)[stage]
                at[stage] += 1
    return max(clock)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Range(2, 1), "2-1 is not a range"),
        (lambda: Cluster(Range.of(0), 1e15, Range.of(0.4)), "devices=0 must be positive"),
        (lambda: Cluster(Range.of(1), 1e15, Range(0.4, 40)), "mfu=40 must be a fraction"),
        (lambda: pipeline_bound([1], 0), "micro_batches=0 must be a positive integer"),
    ],
)
def test_impossible_numbers(build, word):
    with pytest.raises(ConfigError, match=word):
        build()
