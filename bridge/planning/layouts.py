"""How devices share a model and a batch: megatron-core's parallel sizes, its order of ranks, and each rank's place.

Ranks are numbered as megatron-core numbers them, tensor parallelism fastest, then context, expert and data parallelism, and
pipeline stages slowest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import lcm
from typing import Any

from bridge.flops.pipeline import PipelineLayout
from bridge.flops.reading import get, read_layout
from bridge.flops.shapes import ConfigError, whole

ONE_STAGE = PipelineLayout()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parallel sizes with megatron-core's names, and the batch."""

    devices: int = 1
    """Ranks of the whole job."""
    tensor_model_parallel_size: int = 1
    """Ranks that share every layer's matrices (TP)."""
    sequence_parallel: bool = False
    """Norms are split along the sequence over them (SP)."""
    context_parallel_size: int = 1
    """Ranks that share every sequence (CP)."""
    expert_model_parallel_size: int = 1
    """Ranks that share the experts (EP)."""
    expert_tensor_parallel_size: int | None = None
    """Ranks that share one expert's matrices. Unset: as tensor_model_parallel_size."""
    pipeline: PipelineLayout = ONE_STAGE
    """Stages and chunks (PP, VPP)."""
    micro_batch_size: int = 1
    """Sequences per forward pass of a replica."""
    global_batch_size: int | None = None
    """Sequences per step. Unset: one micro-batch per replica."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("sequence_parallel", "pipeline") and value is not None:
                whole(item.name, value)
        for name, size in (("a replica", self.replica), ("all experts", self.experts_and_stages)):
            if self.devices % size:
                raise ConfigError(f"devices={self.devices} do not hold {name} of {size} ranks a whole number of times ({self})")
        samples = self.micro_batch_size * self.data_parallel_size
        if (self.global_batch_size or samples) % samples:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not divisible by micro_batch_size={self.micro_batch_size} x "
                f"{self.data_parallel_size} replicas; use a multiple of {samples}"
            )

    @classmethod
    def of(cls, cfg: Any, devices: int | None = None) -> Layout:
        """The layout of a recipe's ``parallel`` and ``train`` sections on ``devices`` (unset: as few as possible)."""
        parallel, train = get(cfg, "parallel"), get(cfg, "train")
        names = [item.name for item in fields(cls) if item.name not in ("devices", "pipeline")]
        sizes = {name: value for name in names if (value := get(parallel, name) or get(train, name)) is not None}
        if devices is None:
            sizes.pop("global_batch_size", None)
        pipeline = read_layout(cfg)
        stages, tensor = pipeline.pipeline_model_parallel_size, sizes.get("tensor_model_parallel_size", 1)
        experts = sizes.get("expert_tensor_parallel_size", tensor) * sizes.get("expert_model_parallel_size", 1)
        least = lcm(tensor * sizes.get("context_parallel_size", 1) * stages, experts * stages)
        return cls(devices=devices or least, pipeline=pipeline, **sizes)

    def __str__(self) -> str:
        """``TP 2 + SP, PP 4 x 2, EP 8, DP 16``: what is above one."""
        pipeline, sizes = self.pipeline, []
        if self.tensor_model_parallel_size > 1:
            sizes.append(f"TP {self.tensor_model_parallel_size}" + (" + SP" if self.sequence_parallel else ""))
        if self.stages > 1:
            chunks = pipeline.virtual_pipeline_model_parallel_size
            sizes.append(f"PP {self.stages}" + (f" x {chunks}" if chunks else ""))
        sizes += [f"CP {self.context_parallel_size}"] if self.context_parallel_size > 1 else []
        if self.expert_model_parallel_size > 1:
            own = self.expert_tensor != self.tensor_model_parallel_size
            sizes.append(f"EP {self.expert_model_parallel_size}" + (f" (TP {self.expert_tensor})" if own else ""))
        if not self.devices % self.replica and self.data_parallel_size > 1:
            sizes.append(f"DP {self.data_parallel_size}")
        return ", ".join(sizes) or "one device"

    # ---- sizes -----------------------------------------------------------------------------------

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.pipeline.pipeline_model_parallel_size

    @property
    def chunks(self) -> int:
        """Chunks of a stage, for the interleaved schedule."""
        return self.pipeline.virtual_pipeline_model_parallel_size or 1

    @property
    def expert_tensor(self) -> int:
        """Ranks that share one expert's matrices."""
        return self.expert_tensor_parallel_size or self.tensor_model_parallel_size

    @property
    def replica(self) -> int:
        """Ranks that hold one model and work on one batch."""
        return self.tensor_model_parallel_size * self.context_parallel_size * self.stages

    @property
    def experts_and_stages(self) -> int:
        """Ranks that hold all experts of all stages once."""
        return self.expert_tensor * self.expert_model_parallel_size * self.stages

    @property
    def data_parallel_size(self) -> int:
        """Replicas, which share the global batch."""
        return self.devices // self.replica

    @property
    def gradient_ranks(self) -> int:
        """Ranks that add up the gradients of a dense weight: replicas x context parallelism."""
        return self.data_parallel_size * self.context_parallel_size

    @property
    def expert_gradient_ranks(self) -> int:
        """Ranks that add up the gradients of an expert."""
        return self.devices // self.experts_and_stages

    @property
    def core(self) -> Layout:
        """What decides which weights a rank holds: no batch, no replicas, no context parallelism, as few ranks as possible."""
        ranks = lcm(self.tensor_model_parallel_size * self.stages, self.experts_and_stages)
        return replace(self, devices=ranks, context_parallel_size=1, micro_batch_size=1, global_batch_size=None)

    @property
    def cuts(self) -> Layout:
        """What decides what each token costs: the same without expert parallelism."""
        return replace(self, expert_model_parallel_size=1).core if self.expert_model_parallel_size > 1 else self.core

    @property
    def without_batch(self) -> Layout:
        """The same with one sequence per replica: the batch changes nothing that lasts longer than a step."""
        return replace(self, micro_batch_size=1, global_batch_size=None)

    @property
    def micro_batches(self) -> int:
        """Forward passes of a replica per step."""
        samples = self.micro_batch_size * self.data_parallel_size
        return (self.global_batch_size or samples) // samples

    # ---- ranks -----------------------------------------------------------------------------------

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a rank."""
        return rank // (self.devices // self.stages)

    def gradient_rank(self, rank: int, *, expert: bool = False) -> int:
        """The number of a rank among those that add up the gradients of its weights."""
        if expert:
            return rank // (self.expert_tensor * self.expert_model_parallel_size) % self.expert_gradient_ranks
        return rank // self.tensor_model_parallel_size % self.gradient_ranks
