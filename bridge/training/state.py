"""The state of a run: the place of this process in the job, and the progress of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bridge.metrics.trackers import Trackers

if TYPE_CHECKING:
    from bridge.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The place of this process in the job: its rank and the number of ranks along every parallel dimension."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    virtual_pipeline_size: int = 1
    context_rank: int = 0
    context_size: int = 1
    data_rank: int = 0
    data_size: int = 1
    expert_rank: int = 0
    expert_size: int = 1

    @property
    def writes(self) -> bool:
        """True on the one rank that writes to the console, to files and to trackers."""
        return self.rank == 0

    @classmethod
    def from_parallel_state(cls, *, local_rank: int = 0) -> Groups:
        """Read megatron-core's parallel state, which must be initialized."""
        from megatron.core import parallel_state as ps

        return cls(
            rank=torch.distributed.get_rank(),
            world_size=torch.distributed.get_world_size(),
            local_rank=local_rank,
            tensor_rank=ps.get_tensor_model_parallel_rank(),
            tensor_size=ps.get_tensor_model_parallel_world_size(),
            pipeline_rank=ps.get_pipeline_model_parallel_rank(),
            pipeline_size=ps.get_pipeline_model_parallel_world_size(),
            virtual_pipeline_size=ps.get_virtual_pipeline_model_parallel_world_size() or 1,
            context_rank=ps.get_context_parallel_rank(),
            context_size=ps.get_context_parallel_world_size(),
            data_rank=ps.get_data_parallel_rank(),
            data_size=ps.get_data_parallel_world_size(),
            expert_rank=ps.get_expert_model_parallel_rank(),
            expert_size=ps.get_expert_model_parallel_world_size(),
        )


@dataclass(kw_only=True)
class TrainState:
    """The state of a run; ``context.state`` of every callback.

    Megatron-Bridge nests its counters in ``state.train_state``; here that name leads back to the same object, so one
    callback works in both loops.
    """

    cfg: Config
    groups: Groups = field(default_factory=Groups)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    number_format: str = "fp32"
    """Number format of the matmuls that are not quantized: ``fp32`` or ``bf16``."""

    step: int = 0
    """Completed optimizer steps, since the first step ever."""
    consumed_samples: int = 0
    """Training samples consumed so far, over all ranks."""
    skipped_steps: int = 0
    """Steps without an update: listed in train.skip_iterations, or gradients that were not finite."""
    global_batch_size: int = 0
    """Samples of the current step, over all ranks; smaller than train.global_batch_size during a ramp-up."""
    num_microbatches: int = 0
    """Micro-batches of the current step on this replica."""

    resumed_from: str | None = None
    """The checkpoint this process started from."""
    trackers: Trackers = field(default_factory=Trackers)
    """Where rows of metrics go (``log``, ``summary``, ``close``); nowhere on ranks that do not write."""
    wandb_run_id: str | None = None
    """Kept in the checkpoint, so that a resumed run continues its W&B run."""

    @property
    def train_state(self) -> TrainState:
        """Megatron-Bridge's name for the counters."""
        return self

    @property
    def consumed_train_samples(self) -> int:
        """Megatron-Bridge's name for :attr:`consumed_samples`."""
        return self.consumed_samples
