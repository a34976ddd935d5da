"""megatron-core's gradient buffers: how parameters lie in buckets, and which slice of them a rank optimizes.

The rules are those of ``_ParamAndGradBuffer`` and ``DistributedOptimizer`` (megatron-core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import lcm
from typing import Any

from bridge.flops.plan import Plan
from bridge.flops.reading import get
from bridge.flops.shapes import ConfigError
from bridge.planning.layouts import Layout
from bridge.planning.shards import ParameterShard, chunks

#: Entries to which a parameter, and to whose multiple a bucket, is aligned under the distributed optimizer.
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
#: Entries of a bucket where gradients are reduced while the backward pass runs: megatron-core's own rule.
SMALLEST_BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000

#: Bytes of one number.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The options that decide how much an optimizer holds, by megatron-core's names."""

    optimizer: str = "adam"
    """``adam`` (two moments) or ``sgd`` (momentum)."""
    use_distributed_optimizer: bool = True
    """States are split over the ranks that add up the same gradients."""
    overlap_grad_reduce: bool = False
    """Gradients are reduced bucket by bucket."""
    overlap_param_gather: bool = False
    """Weights are gathered while the next forward pass runs."""
    params_dtype: str = "bf16"
    """The format of the weights: ``bf16``, ``fp16`` or ``fp32``."""
    grad_reduce_in_fp32: bool = True
    """Gradients are kept and added up in fp32."""
    use_precision_aware_optimizer: bool = False
    """Main weights and moments may be narrower than fp32."""
    store_param_remainders: bool = True
    """With it: a bf16 weight's main copy keeps the 16 bits that the weight itself lacks."""
    main_params_dtype: str = "fp32"
    exp_avg_dtype: str = "fp32"
    exp_avg_sq_dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd"):
            raise ConfigError(f"optimizer={self.optimizer!r} is not known; choose adam or sgd")
        for name in ("params_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
            if getattr(self, name) not in BYTES:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(BYTES)}")
        if self.use_precision_aware_optimizer and not self.use_distributed_optimizer:
            raise ConfigError("use_precision_aware_optimizer needs use_distributed_optimizer")

    @classmethod
    def of(cls, cfg: Any) -> Optimizer:
        """What a recipe's ``optimizer`` section and ``model.bf16`` say; bf16 where that is unset."""
        section = get(cfg, "optimizer")
        given = {name: get(section, name) for name in cls.__dataclass_fields__}
        chosen = {name: value for name, value in given.items() if value is not None}
        if get(get(cfg, "model"), "bf16") is False:
            chosen |= {"params_dtype": "fp32", "grad_reduce_in_fp32": False}
        return cls(**chosen)

    @property
    def weight_bytes(self) -> int:
        """Bytes per weight."""
        return BYTES[self.params_dtype]

    @property
    def gradient_bytes(self) -> int:
        """Bytes per gradient."""
        return 4 if self.grad_reduce_in_fp32 else self.weight_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state per weight: its main copy and its moments."""
        moments = ("exp_avg_dtype", "exp_avg_sq_dtype")[: 2 if self.optimizer == "adam" else 1]
        if not self.use_precision_aware_optimizer:
            return 4 * len(moments) + (4 if self.weight_bytes < 4 else 0)
        remainders = self.store_param_remainders and self.params_dtype == "bf16" and self.main_params_dtype == "fp32"
        main = 2 if remainders else BYTES[self.main_params_dtype]
        return main + sum(BYTES[getattr(self, name)] for name in moments)

    def bucket_size(self, layout: Layout, stage: int, chunk: int) -> int | None:
        """Entries after which a bucket is closed; None: never. Only the first stage's first chunk is cut."""
        if not self.overlap_grad_reduce or stage or chunk:
            return None
        return max(SMALLEST_BUCKET, BUCKET_PER_RANK * layout.data_parallel_size)


@dataclass(frozen=True)
class Buffer:
    """Gradients that one group of ranks adds up, as one stretch of memory.

    Attributes:
        numel: entries, alignment included.
        ranks: number of ranks that add it up.
        own: entries of parameters, without alignment.
        slices: entries of parameters in the slices of each rank; with the distributed optimizer it keeps states for these.
        expert: whether it holds experts.
    """

    numel: int
    ranks: int
    own: int
    slices: tuple[int, ...] = field(repr=False)
    expert: bool = False


def stage_buffers(plan: Plan, layout: Layout, optimizer: Optimizer, stage: int, *, local: bool = False) -> list[Buffer]:
    """The buffers of all model chunks of a pipeline stage; arguments as for ``shards.chunks``."""
    return _stage_buffers(plan, layout.without_batch, optimizer, stage, local)


@lru_cache(maxsize=1024)
def _stage_buffers(plan: Plan, layout: Layout, optimizer: Optimizer, stage: int, local: bool) -> list[Buffer]:
    held = chunks(plan, layout, stage, local=local)
    return [
        buffer
        for chunk, shards in enumerate(held)
        for buffer in buffers(shards, layout, optimizer, optimizer.bucket_size(layout, stage, chunk))
    ]


def buffers(shards: Iterable[ParameterShard], layout: Layout, optimizer: Optimizer, size: int | None) -> list[Buffer]:
    """The buffers of one model chunk: that of the experts apart where they are spread over ranks.

    Args:
        shards: the chunk's parameters; those that do not train have no place in a buffer.
        layout, optimizer: how it is cut and reduced.
        size: entries after which a bucket is closed.
    """
    groups: dict[bool, list[ParameterShard]] = {}
    for shard in shards:
        if shard.trains and shard.numel:
            groups.setdefault(shard.expert, []).append(shard)
    ranks = {False: layout.gradient_ranks, True: layout.expert_gradient_ranks}
    return [_buffer(held, expert, ranks[expert], optimizer, size) for expert, held in sorted(groups.items())]


def _buffer(held: Sequence[ParameterShard], expert: bool, ranks: int, optimizer: Optimizer, size: int | None) -> Buffer:
    own = sum(shard.numel for shard in held)
    if not optimizer.use_distributed_optimizer:
        return Buffer(own, ranks, own, (own,) * ranks, expert)
    slices, end = [0] * ranks, 0
    for start, end, inside in _buckets(held, ranks, size):
        width = (end - start) // ranks
        for first, last in inside:
            for rank in range((first - start) // width, (last - 1 - start) // width + 1):
                begin = start + rank * width
                slices[rank] += min(last, begin + width) - max(first, begin)
    return Buffer(end, ranks, own, tuple(slices), expert)


def _buckets(held: Sequence[ParameterShard], ranks: int, size: int | None) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Start and end of each bucket, and of the parameters in it; the model's last parameter comes first."""
    align, start, position, full = lcm(ranks, BUCKET_ALIGNMENT), 0, 0, False
    inside: list[tuple[int, int]] = []
    for shard in reversed(held):
        position = _up(position, PARAMETER_ALIGNMENT)
        if inside and (full or shard.alone):
            position = _up(position, align)
            yield start, position, inside
            start, inside = position, []
        inside.append((position, position + shard.numel))
        position += shard.numel
        full = shard.alone or (size is not None and position - start >= size)
    if inside:
        yield start, _up(position, align), inside


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
