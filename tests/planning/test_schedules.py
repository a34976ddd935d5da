"""Pipeline schedules by hand: how many micro-batches a stage keeps."""

from __future__ import annotations

import pytest

from bridge.planning.schedules import kept_at_peak, passes


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_one_forward_one_backward(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        assert kept_at_peak([1], stage, stages, micro_batches) == [min(micro_batches, stages - stage)]


@pytest.mark.parametrize(("stages", "chunks"), [(2, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_interleaved(stages: int, chunks: int, rounds: int) -> None:
    micro_batches = rounds * stages
    for stage in range(stages):
        ahead = 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
        assert sum(kept_at_peak([1] * chunks, stage, stages, micro_batches)) == min(ahead, micro_batches * chunks)


def test_every_pass_has_its_way_back() -> None:
    done = list(passes(1, 4, 8, 2))
    assert len(done) == 2 * 8 * 2
    for chunk in range(2):
        assert done.count((1, chunk)) == done.count((-1, chunk)) == 8
    assert done[:5] == [(1, 0)] * 4 + [(1, 1)]
    # Two stages of four ahead twice over, and one chunk of four before: eight forward passes before the first way back.
    assert done.index((-1, 1)) == 9


def test_heavy_chunks_weigh_more() -> None:
    """The first chunk holds an embedding: the peak is where most of its passes wait."""
    assert kept_at_peak([1, 1], 0, 2, 8) == [3, 2]  # five passes: two, two, and the first chunk's third
    assert kept_at_peak([100, 1], 0, 2, 8) == [4, 1]
