"""What ranks send of the spans of their steps, and the parts that come out; all sums exact."""

from __future__ import annotations

import pytest

from bridge.metrics.spans import Phase
from bridge.metrics.time_parts import PASSES_KEPT, WAITS_KEPT, MeanStep, RankTimes, TimeEntries, measured, time_parts
from tests.metrics.told import Rank


def together(shape: TimeEntries, ranks: list[Rank]) -> MeanStep:
    sent = [rank.send() for rank in ranks]
    sums = [sum(column) for column in zip(*(one[0] for one in sent), strict=True)]
    least = [min(column) for column in zip(*(one[1] for one in sent), strict=True)]
    found = measured(shape, ranks[0].times, sums, least, len(ranks))
    assert found is not None
    return found


def test_of_each_collective_the_least_is_communication_and_the_rest_waiting():
    """Now one rank comes late, now the other: 1 s of transfer each time, though each rank waits 6 s in sum."""
    ranks = [Rank(), Rank()]
    for first, second in ((1, 5), (5, 1), (2, 2)):
        ranks[0].spend(first, "all-grads-sync", "wait")
        ranks[1].spend(second, "all-grads-sync", "wait")
        ranks[0].spend(5 - first, "forward-compute")
        ranks[1].spend(5 - second, "forward-compute")
    for rank in ranks:
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert found == MeanStep(step=15, compute=7, communication=pytest.approx(4), imbalance=pytest.approx(4))
    parts = time_parts(15, found, ideal=3, padding=0.5, recompute=1.0)
    assert parts == pytest.approx(
        {
            "ideal": 3,
            "padding": 0.5,
            "recompute": 1,
            "kernels": 2.5,
            "imbalance": 4,
            "bubble": 0,
            "communication": 4,
            "optimizer": 0,
            "data": 0,
            "host": 0,
        },
        abs=1e-9,
    )


def test_collectives_of_less_than_a_second_are_parted_too():
    ranks = [Rank(), Rank()]
    for rank, seconds in zip(ranks, (0.25, 0.75), strict=True):
        rank.spend(seconds, "all-grads-sync", "wait")
        rank.end_step()
    assert together(TimeEntries(), ranks) == MeanStep(step=0.5, compute=0, communication=0.25, imbalance=0.25)


def test_ranks_that_call_different_collectives_are_not_compared():
    ranks = [Rank(), Rank()]
    ranks[0].spend(1, "all-grads-sync", "wait")
    for _ in range(2):
        ranks[1].spend(1, "all-grads-sync", "wait")
    for rank in ranks:
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert (found.communication, found.imbalance) == (1.5, 0)


def test_the_sample_speaks_for_the_other_steps_but_for_their_data():
    """Steps of 8, 16, 24 and 32 s, of which the second is the sample; 10 s of data in the last: 70 s are parted 8 : 4 : 4."""
    rank = Rank(every_step=False)
    for step in range(4):
        if step == 1:
            rank.spans.sample()
        rank.spend(4 * step + 4, "forward-compute")
        rank.spend(2 * step + 2, "optimizer")
        rank.spend(2 * step + 2)
        if step == 3:
            rank.spend(10, "data")
        rank.end_step()
    found = together(TimeEntries(), [rank])
    assert rank.times.lengths == [8, 16, 24, 42]
    assert found == MeanStep(step=22.5, compute=10, optimizer=5, data=2.5)
    parts = time_parts(45, found)
    assert (parts["data"], parts["host"], sum(parts.values())) == pytest.approx((5, 10, 45))


def test_steps_wait_for_a_sample_to_speak_for_them():
    rank = Rank(every_step=False)
    rank.spend(1, "optimizer")
    rank.end_step()
    assert rank.send() is None
    rank.spans.sample()
    rank.spend(3, "optimizer")
    rank.end_step()
    assert together(TimeEntries(), [rank]) == MeanStep(step=2, compute=0, optimizer=2)


def test_more_waits_than_entries_are_taken_together():
    most = WAITS_KEPT[Phase.COMPUTE_WAIT]
    ranks = [Rank(), Rank()]
    for rank, seconds in zip(ranks, (1, 3), strict=True):
        for _ in range(3 * most + 1):
            rank.spend(seconds, "backward-compute", "wait")
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert (found.communication, found.imbalance) == (3 * most + 1, 3 * most + 1)


@pytest.mark.parametrize("micro_batches", [4, PASSES_KEPT, 3 * PASSES_KEPT])
def test_what_a_pipeline_waits_is_its_bubble_and_transfer(micro_batches):
    """Two equal stages, 1 s forward, 2 s backward: a bubble of 3 s on each; the stages wait 3 s and 1 s longer."""
    shape = TimeEntries(stages=2)
    ranks = [Rank(shape, 0), Rank(shape, 1)]
    for rank, waits in zip(ranks, (4, 6), strict=True):
        for _ in range(micro_batches):
            rank.spend(1, "forward-compute")
            rank.spend(2, "backward-compute")
        rank.spend(waits - 2, "forward-recv", "wait")
        rank.spend(2, "wait")
        rank.end_step()
    found = together(shape, ranks)
    assert found == MeanStep(
        step=3 * micro_batches + 5, compute=3 * micro_batches, bubble=pytest.approx(3), communication=pytest.approx(2)
    )


def test_a_slow_stage_is_imbalance():
    shape = TimeEntries(stages=4)
    ranks = [Rank(shape, stage) for stage in range(4)]
    for stage, rank in enumerate(ranks):
        factor = 2 if stage == 2 else 1
        for _ in range(4):
            rank.spend(factor, "forward-compute")
            rank.spend(2 * factor, "backward-compute")
        rank.spend(31 - 12 * factor, "backward-recv", "wait")
        rank.end_step()
    found = together(shape, ranks)
    assert found == MeanStep(
        step=31, compute=15, bubble=pytest.approx(11.25), imbalance=pytest.approx(4.75), communication=pytest.approx(0)
    )


def test_without_a_peak_compute_is_one_part_and_a_rank_without_a_reading_leaves_none():
    found = MeanStep(step=2.0, compute=1.0, data=0.5)
    assert time_parts(2.0, found) == pytest.approx(
        {"compute": 1, "imbalance": 0, "bubble": 0, "communication": 0, "optimizer": 0, "data": 0.5, "host": 0.5}
    )
    assert time_parts(0.0, found) == {}
    assert (
        measured(TimeEntries(), RankTimes(TimeEntries()), [0] * len(TimeEntries().entries), [0] * TimeEntries().minima, 1) is None
    )
    assert RankTimes(TimeEntries()).take() is None
