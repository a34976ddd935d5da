"""The bytes that a rank needs: weights, gradients, optimizer states, activations, logits, buffers of the collectives.

Weights, gradients and states are those that megatron-core allocates, to the byte; activations are those of one implementation's
kernels (``activations``), as many of them at a time as the pipeline's schedule keeps (``schedules``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError
from bridge.planning.activations import IMPLEMENTATIONS, LOGITS, Batch, Implementation, activations, not_kept, working
from bridge.planning.buffers import Buffer, Optimizer, stage_buffers
from bridge.planning.four_bits import stored_bytes
from bridge.planning.layouts import Layout
from bridge.planning.schedules import kept_at_peak
from bridge.planning.shards import ParameterShard, chunks, terms_for, terms_of, unknown

DEFAULT_OPTIMIZER = Optimizer()

#: Fraction of a device's memory that a plan may fill; the rest is for the context, the libraries' buffers and fragmentation.
USABLE = 0.94


@dataclass(frozen=True)
class States:
    """Bytes that a rank holds between two steps.

    Attributes:
        weights: the weights that passes compute with, including alignment in the distributed optimizer's buffer.
        gradients: the buffers in which gradients are added up.
        optimizer: main copies of the weights, and moments.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Weights, gradients and optimizer states."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Memory:
    """Peak bytes of the fullest rank of a pipeline stage.

    Attributes:
        stage: from 0.
        states: what it holds between steps.
        activations: what forward passes keep for their backward passes, by component of the model; the logits and what the
            loss keeps of them are the line ``logits``.
        micro_batches: forward passes that wait for their backward pass, chunk by chunk.
        working: what a recomputed layer or the loss needs beside that for a while.
        communication: buffers of the collectives.
        unknown: one sentence for each part that is not known.
    """

    stage: int
    states: States
    activations: dict[str, int]
    micro_batches: tuple[int, ...]
    working: int
    communication: int
    unknown: tuple[str, ...] = ()

    @property
    def logits(self) -> int:
        """The part of the activations that logits and loss take."""
        return self.activations.get(LOGITS, 0)

    @property
    def total(self) -> int:
        """Bytes of the peak."""
        return self.states.total + sum(self.activations.values()) + self.working + self.communication

    @property
    def parts(self) -> dict[str, int]:
        """Line by line; they add up to ``total``."""
        kept = sum(self.activations.values()) - self.logits
        return {
            "weights": self.states.weights,
            "gradients": self.states.gradients,
            "optimizer": self.states.optimizer,
            "activations": kept,
            "logits": self.logits,
            "working": self.working,
            "communication": self.communication,
        }

    def fits(self, capacity: int) -> bool:
        """Whether it fits on a device with this many bytes, of which the fraction ``USABLE`` is available."""
        return self.total <= USABLE * capacity


def memory(
    plan: Plan,
    layout: Layout,
    optimizer: Optimizer = DEFAULT_OPTIMIZER,
    *,
    sequence_length: int | None = None,
    implementation: str = "transformer_engine",
    stages: Sequence[int] | None = None,
) -> tuple[Memory, ...]:
    """What the fullest rank of each pipeline stage needs.

    Args:
        plan: the plan of the model.
        layout: how the model and the batch are split.
        optimizer: the optimizer.
        sequence_length: tokens per sequence; by default the model's nominal length.
        implementation: the kernels that keep activations: ``transformer_engine``, or megatron-core's own (``local``).
        stages: pipeline stages, numbered from 0; by default all.

    Raises:
        ConfigError: Sizes do not fit together, the sequence length is missing, or the implementation is unknown.
    """
    length = sequence_length or plan.model.sequence_length
    if length is None:
        raise ConfigError("sequence_length is missing, and the model sets none, so activations are unknown")
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"implementation={implementation!r} is not known; choose one of {', '.join(IMPLEMENTATIONS)}")
    kernels, terms = IMPLEMENTATIONS[implementation], terms_for(plan, layout)
    sentences = (*unknown(terms, layout), *not_kept(terms))
    batch = Batch(layout.micro_batch_size, length // layout.context_parallel_size, optimizer.weight_bytes)
    return tuple(
        _of_stage(plan, layout, optimizer, batch, kernels, stage, sentences)
        for stage in (range(layout.stages) if stages is None else stages)
    )


def fullest(stages: Sequence[Memory]) -> Memory:
    """The stage whose fullest rank needs most."""
    return max(stages, key=lambda one: one.total)


def _of_stage(
    plan: Plan,
    layout: Layout,
    optimizer: Optimizer,
    batch: Batch,
    kernels: Implementation,
    stage: int,
    sentences: tuple[str, ...],
) -> Memory:
    kept, for_a_while = _kept(plan, layout.cuts, stage, batch, kernels)
    waiting = kept_at_peak([sum(one.values()) for one in kept], stage, layout.stages, layout.micro_batches)
    together: dict[str, int] = defaultdict(int)
    for one, count in zip(kept, waiting, strict=True):
        for component, amount in one.items():
            together[component] += amount * count
    return Memory(
        stage=stage,
        states=_states(plan, layout, optimizer, stage, kernels.name == "local", lambda buffer: max(buffer.slices)),
        activations=dict(together),
        micro_batches=tuple(waiting),
        working=for_a_while + _unpacked(plan, layout, optimizer, stage),
        communication=_collectives(plan, layout, batch),
        unknown=sentences,
    )


def _kept(plan: Plan, layout: Layout, stage: int, batch: Batch, kernels: Implementation) -> tuple[list[dict[str, int]], int]:
    """What one pass of each chunk of a stage keeps, and the most that a backward pass needs beside it."""
    (one, one_while), (two, two_while) = (
        _of_sequences(plan, layout, stage, replace(batch, sequences=n), kernels) for n in (1, 2)
    )
    more = batch.sequences - 1  # each adds as much as the second one

    kept = [
        {component: first + more * (second[component] - first) for component, first in of_chunk.items()}
        for of_chunk, second in zip(one, two, strict=True)
    ]
    return kept, one_while + more * (two_while - one_while)


@lru_cache(maxsize=1024)
def _of_sequences(
    plan: Plan, layout: Layout, stage: int, batch: Batch, kernels: Implementation
) -> tuple[list[dict[str, int]], int]:
    held = terms_of(plan, layout, stage)
    kept = [activations(plan, terms, layout, batch, kernels) for terms in held]
    return kept, max(working(plan, terms, layout, batch, kernels) for terms in held)


def _collectives(plan: Plan, layout: Layout, batch: Batch) -> int:
    """The gathered input of a cut layer under sequence parallelism; what arrives from the stages before and behind."""
    activation = batch.width * batch.tokens * (plan.model.shape.hidden_size or 0)
    gathered = layout.tensor_model_parallel_size > 1 and layout.sequence_parallel
    ranks = layout.tensor_model_parallel_size if gathered else 1
    return activation * gathered + 2 * (activation // ranks) * (layout.stages > 1)


def _unpacked(plan: Plan, layout: Layout, optimizer: Optimizer, stage: int) -> int:
    """The largest layer that is stored in four bits, as wide as it is multiplied."""
    held = (shard.numel for chunk in chunks(plan, layout, stage) for shard in chunk if shard.four_bits)
    return optimizer.weight_bytes * max(held, default=0)


# ---- between steps -------------------------------------------------------------------------------


def states(plan: Plan, layout: Layout, optimizer: Optimizer = DEFAULT_OPTIMIZER, *, rank: int = 0, local: bool = False) -> States:
    """What one rank holds between two steps, to the byte.

    Args:
        plan: the plan of the model.
        layout: how the model is split.
        optimizer: the optimizer.
        rank: number of the rank in the whole job, in megatron-core's order.
        local: megatron-core's own layers instead of Transformer Engine's.
    """
    ranks = {expert: layout.gradient_rank(rank, expert=expert) for expert in (False, True)}
    stage = layout.stage_of(rank)
    return _states(plan, layout, optimizer, stage, local, lambda buffer: buffer.slices[ranks[buffer.expert]])


def _states(
    plan: Plan,
    layout: Layout,
    optimizer: Optimizer,
    stage: int,
    local: bool,
    own: Callable[[Buffer], int],
) -> States:
    every = stage_buffers(plan, layout, optimizer, stage, local=local)
    numel = sum(buffer.numel for buffer in every)
    frozen = (shard for held in chunks(plan, layout, stage, local=local) for shard in held if not shard.trains)
    return States(
        weights=optimizer.weight_bytes * numel + sum(_bytes(shard, optimizer) for shard in frozen),
        gradients=optimizer.gradient_bytes * numel,
        optimizer=optimizer.state_bytes * sum(map(own, every)),
    )


def _bytes(shard: ParameterShard, optimizer: Optimizer) -> int:
    return stored_bytes(shard.numel) if shard.four_bits else optimizer.weight_bytes * shard.numel
