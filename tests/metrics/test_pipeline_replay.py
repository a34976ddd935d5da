"""Schedules replayed against the formula for equal stages, and against megatron-core's own order."""

from __future__ import annotations

import pytest

from bridge.metrics.pipeline_replay import arranged, makespan, order, replay


def stages(count, chunks, micro_batches, forward=1.0, backward=2.0, slow=None, factor=2.0):
    def seconds(stage, way):
        return (forward if way else backward) * (factor if stage == slow else 1.0) / chunks

    return [
        {(way, chunk): [seconds(stage, way)] * micro_batches for way in (True, False) for chunk in range(chunks)}
        for stage in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "chunks", "micro_batches"),
    [(1, 1, 3), (2, 1, 1), (4, 1, 2), (4, 1, 4), (4, 1, 16), (4, 2, 8), (2, 2, 4), (8, 4, 16), (3, 2, 6)],
)
def test_equal_stages_take_what_the_formula_says(count, chunks, micro_batches):
    times = stages(count, chunks, micro_batches)
    assert makespan(times) == (micro_batches + (count - 1) / chunks) * 3
    found = replay(times)
    assert (found.busy, found.bubble, found.imbalance) == (3 * micro_batches, 3 * (count - 1) / chunks, 0)


@pytest.mark.parametrize(("slow", "expected"), [(0, 27), (2, 31), (3, 33)])
def test_a_slow_stage_costs_by_where_it_stands(slow, expected):
    """By hand, 4 stages, 4 micro-batches, 1 s forward and 2 s backward, one stage twice as slow."""
    found = replay(stages(4, 1, 4, slow=slow))
    assert found.busy + found.bubble + found.imbalance == expected
    assert (found.busy, found.bubble) == (15, 3 * 15 / 4)


def test_order_of_the_interleaved_schedule():
    """As megatron-core numbers it: chunk k % (p v) // p, micro-batch k // (p v) * p + k % p; 2 (p - s - 1) + (v - 1) p ahead."""
    p, v, m = 4, 2, 8
    for stage in range(p):
        passes = order(stage, p, v, m)
        forward = [one[1:] for one in passes if one[0]]
        assert forward == [(k % (p * v) // p, k // (p * v) * p + k % p) for k in range(m * v)]
        assert [one[1:] for one in passes if not one[0]] == [(v - 1 - chunk, i) for chunk, i in forward]
        ahead = next(place for place, one in enumerate(passes) if not one[0])
        assert ahead == min(2 * (p - stage - 1) + (v - 1) * p, m * v) + (stage < p and ahead < m * v)


def test_times_as_they_came_find_their_micro_batch():
    came = [float(k) for k in range(16)]
    times = arranged(1, 4, 2, came, came)
    assert times[True, 0] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert times[True, 1] == [4, 5, 6, 7, 12, 13, 14, 15]
    assert times[False, 1] == [0, 1, 2, 3, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="15 forward and 16 backward passes of 2 chunks"):
        arranged(1, 4, 2, came[1:], came)
