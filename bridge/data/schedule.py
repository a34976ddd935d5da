"""The number of samples in each step, and those of this replica."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSchedule:
    """The global batch size as a function of the samples consumed so far (megatron-core's ramp-up rule).

    With ``rampup = (start, increment, samples)`` the batch size begins at ``start`` and grows by ``increment`` at equal
    distances within the first ``samples`` samples until it reaches ``global_batch_size``. It depends on the samples only, so it
    is the same on every layout.
    """

    global_batch_size: int
    rampup: tuple[int, int, int] | None = None

    def size(self, consumed_samples: int) -> int:
        """Samples of the step that begins after ``consumed_samples``."""
        if self.rampup is None:
            return self.global_batch_size
        start, increment, samples = self.rampup
        increments = (self.global_batch_size - start) // increment
        if consumed_samples >= samples or increments == 0:
            return self.global_batch_size
        return start + increment * (consumed_samples * increments // samples)


class MicroBatchSampler:
    """Endless lists of sample numbers, one list per micro-batch of this replica.

    Within a global batch micro-batch i of replica r starts at sample ``(i * replicas + r) * micro_batch_size``: a
    global batch holds the same samples whatever the number of replicas.  Steps in ``skip`` consume their samples
    without yielding them.
    """

    def __init__(
        self,
        schedule: BatchSchedule,
        *,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        step: int = 0,
        consumed_samples: int = 0,
        skip: Collection[int] = (),
    ) -> None:
        """Begin after ``step`` completed steps and ``consumed_samples`` samples."""
        self.schedule = schedule
        self.micro_batch_size = micro_batch_size
        self.data_rank = data_rank
        self.data_size = data_size
        self.step = step
        self.consumed_samples = consumed_samples
        self.skip = frozenset(skip)

    def __iter__(self) -> Iterator[Sequence[int]]:
        step, consumed = self.step, self.consumed_samples
        stride = self.micro_batch_size * self.data_size
        while True:
            size = self.schedule.size(consumed)
            step += 1
            if step not in self.skip:
                mine = consumed + self.data_rank * self.micro_batch_size
                for first in range(mine, mine + size, stride):
                    yield range(first, first + self.micro_batch_size)
            consumed += size
