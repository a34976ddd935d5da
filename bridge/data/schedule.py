"""How many samples a step takes, and which of them this replica takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from bridge.flops.model_shape import ConfigError


@dataclass(frozen=True)
class BatchSchedule:
    """The global batch size as a function of the samples consumed so far (megatron-core's ramp-up rule).

    With ``rampup = (start, increment, samples)`` the batch begins at ``start`` and grows by ``increment`` in equal parts
    of ``samples`` until it reaches ``global_batch_size``; it follows from the samples alone, so it is the same on every
    layout.
    """

    global_batch_size: int
    rampup: Optional[tuple[int, int, int]] = None

    def __post_init__(self) -> None:
        if self.rampup is None:
            return
        start, increment, samples = self.rampup
        if start < 1 or increment < 1 or samples < 0 or start > self.global_batch_size:
            raise ConfigError(
                f"train.rampup_batch_size={list(self.rampup)} must be [start >= 1, increment >= 1, samples >= 0] with "
                f"start <= train.global_batch_size={self.global_batch_size}."
            )
        if (self.global_batch_size - start) % increment:
            raise ConfigError(
                f"train.rampup_batch_size={list(self.rampup)} never reaches train.global_batch_size="
                f"{self.global_batch_size}: their difference must be a multiple of the increment {increment}."
            )

    def size(self, consumed_samples: int) -> int:
        """Samples of the step that begins after ``consumed_samples``."""
        if self.rampup is None:
            return self.global_batch_size
        start, increment, samples = self.rampup
        increments = (self.global_batch_size - start) // increment
        if consumed_samples >= samples or increments == 0:
            return self.global_batch_size
        return start + increment * (consumed_samples * increments // samples)

    def sizes(self) -> list[int]:
        """Every batch size that comes up, in order."""
        if self.rampup is None or self.rampup[2] == 0:
            return [self.global_batch_size]
        return list(range(self.rampup[0], self.global_batch_size + 1, self.rampup[1]))

    def check(self, micro_batch_size: int, data_parallel_size: int) -> None:
        """Raise ConfigError unless every batch divides into whole micro-batches on every replica."""
        for size in self.sizes():
            if size % (micro_batch_size * data_parallel_size):
                option = "train.rampup_batch_size" if size != self.global_batch_size else "train.global_batch_size"
                raise ConfigError(
                    f"{option}: a batch of {size} samples does not divide into micro-batches of "
                    f"train.micro_batch_size={micro_batch_size} on {data_parallel_size} data-parallel replicas. Make it "
                    f"a multiple of {micro_batch_size * data_parallel_size}."
                )


class MicroBatchSampler:
    """Endless lists of sample numbers, one list a micro-batch of this replica.

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
