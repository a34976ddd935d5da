"""megatron-core's pipeline schedules: the passes of a stage in order, and how many wait for their backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def passes(stage: int, stages: int, micro_batches: int, chunks: int = 1) -> Iterator[tuple[int, int]]:
    """The passes of one stage in order: (1, chunk) forward, (-1, chunk) backward.

    One forward pass and one backward pass in turn, after enough forward passes that every stage has work; with several chunks
    each is run for ``stages`` micro-batches before the next (Narayanan et al., arXiv:2104.04473).

    Args:
        stage: pipeline stage, from 0.
        stages: stages of the pipeline.
        micro_batches: per step.
        chunks: virtual_pipeline_model_parallel_size.
    """
    total = micro_batches * chunks
    ahead = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
    ahead = min(ahead, total)
    for number in range(total + ahead):
        if number < total:
            yield 1, number // stages % chunks
        if number >= ahead:
            yield -1, chunks - 1 - (number - ahead) // stages % chunks


def kept_at_peak(kept: Sequence[int], stage: int, stages: int, micro_batches: int) -> list[int]:
    """Forward passes of each chunk that wait for their backward pass when a stage keeps most.

    Args:
        kept: bytes that one forward pass of each chunk keeps.
        stage, stages, micro_batches: as for ``passes``.
    """
    # From a few rounds on the schedule repeats itself.
    micro_batches = min(micro_batches, 4 * stages)
    waiting, now, most, peak = [0] * len(kept), 0, -1, [0] * len(kept)
    for direction, chunk in passes(stage, stages, micro_batches, len(kept)):
        waiting[chunk] += direction
        now += direction * kept[chunk]
        if now > most:
            most, peak = now, list(waiting)
    return peak
