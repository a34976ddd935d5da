"""Replays a pipeline's schedule with the measured times of its passes, as if transfers took no time.

Stages run their forward and backward passes in megatron-core's order (1F1B, interleaved with several chunks per stage); each pass
starts when the one it depends on is over.  The formula (m + (p - 1) / v) t would hold for equal stages only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Pass = tuple[bool, int, int]
"""Whether it is a forward pass, the chunk of the stage, the micro-batch."""

Durations = Mapping[tuple[bool, int], Sequence[float]]
"""(forward, chunk) -> seconds of each micro-batch, of one stage."""


def order(stage: int, stages: int, chunks: int, micro_batches: int) -> list[Pass]:
    """The passes of one stage as its schedule runs them."""
    forward = [(True, chunk, i) for chunk, i in _visits(stages, chunks, micro_batches)]
    backward = [(False, chunks - 1 - chunk, i) for chunk, i in _visits(stages, chunks, micro_batches)]
    ahead = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
    ahead = min(ahead, len(forward))
    steady = [one for pair in zip(forward[ahead:], backward, strict=False) for one in pair]
    return [*forward[:ahead], *steady, *backward[len(forward) - ahead :]]


def _visits(stages: int, chunks: int, micro_batches: int) -> Iterator[tuple[int, int]]:
    """Chunk and micro-batch of each pass in order: micro-batches pass through the chunks in groups of as many as stages."""
    for first in range(0, micro_batches, stages if chunks > 1 else micro_batches):
        group = range(first, min(first + stages, micro_batches) if chunks > 1 else micro_batches)
        for chunk in range(chunks):
            yield from ((chunk, i) for i in group)


def arranged(stage: int, stages: int, chunks: int, forward: Sequence[float], backward: Sequence[float]) -> Durations:
    """The times of a stage's passes by chunk and micro-batch, given in the order in which they ran.

    Raises:
        ValueError: The passes are not a whole number of micro-batches.
    """
    if len(forward) != len(backward) or len(forward) % chunks:
        raise ValueError(f"{len(forward)} forward and {len(backward)} backward passes of {chunks} chunks")
    micro_batches = len(forward) // chunks
    times = {(way, chunk): [0.0] * micro_batches for way in (True, False) for chunk in range(chunks)}
    came = {True: iter(forward), False: iter(backward)}
    for way, chunk, i in order(stage, stages, chunks, micro_batches):
        times[way, chunk][i] = next(came[way])
    return times


def makespan(durations: Sequence[Durations]) -> float:
    """Seconds from the first forward pass to the last backward pass of all stages.

    Args:
        durations: durations of each stage, with the same number of chunks and micro-batches.
    """
    stages, chunks = len(durations), len(durations[0]) // 2
    micro_batches = len(durations[0][True, 0])
    queues = [deque(order(stage, stages, chunks, micro_batches)) for stage in range(stages)]
    done: dict[tuple[int, Pass], float] = {}
    now = [0.0] * stages
    awake = deque(range(stages))
    while awake:
        stage = awake.popleft()
        queue, moved = queues[stage], False
        while queue:
            one = queue[0]
            needed = _needed(stage, one, stages, chunks)
            if needed is not None and needed not in done:
                break
            start = now[stage] if needed is None else max(now[stage], done[needed])
            now[stage] = done[stage, one] = start + durations[stage][one[:2]][one[2]]
            queue.popleft()
            moved = True
        if moved:
            awake.extend({(stage - 1) % stages, (stage + 1) % stages} - set(awake))
    if any(queues):
        raise ValueError("the schedule never ends")
    return max(now)


def _needed(stage: int, one: Pass, stages: int, chunks: int) -> tuple[int, Pass] | None:
    """The pass whose result this pass needs; None for the first pass of all."""
    forward, chunk, i = one
    last = stages - 1
    if forward:
        if stage:
            return stage - 1, one
        return (last, (True, chunk - 1, i)) if chunk else None
    if stage < last:
        return stage + 1, one
    return (0, (False, chunk + 1, i)) if chunk < chunks - 1 else (last, (True, chunk, i))


@dataclass(frozen=True)
class Replay:
    """A pipeline's seconds from its first pass to its last: ``busy + bubble + imbalance``.

    Attributes:
        busy: seconds in which a stage computes, mean over the stages.
        bubble: seconds that it would wait if all stages and micro-batches took the same time.
        imbalance: seconds that it waits beyond that.
    """

    busy: float
    bubble: float
    imbalance: float


def replay(durations: Sequence[Durations]) -> Replay:
    """Where the time of a pipeline without transfers goes."""
    stages, chunks = len(durations), len(durations[0]) // 2
    busy = sum(sum(map(sum, stage.values())) for stage in durations) / stages
    idle = max(0.0, makespan(durations) - busy)
    bubble = min(idle, (stages - 1) / chunks * busy / len(durations[0][True, 0]))
    return Replay(busy, bubble, idle - bubble)
