"""Core attention in plain torch: causal or bidirectional, windowed, packed, context parallel.

megatron-core's local attention handles one unpacked sequence on one rank; Transformer Engine's handles everything but
needs a GPU.  This module handles everything on any device, through torch's scaled dot-product attention.  It is exact,
not fast: packed segments run one after the other, and under context parallelism keys and values are gathered.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor


class GatherSequence(torch.autograd.Function):
    """All-gather along a new first dimension; the backward pass sums the gradient over the ranks and returns this rank's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(part) for _ in range(group.size())]
        torch.distributed.all_gather(parts, part.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may still use the original
        torch.distributed.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.group.rank()], None


class SumGradient(torch.autograd.Function):
    """The identity; the gradient is summed over the ranks of a group.

    megatron-core's own copy into the tensor-parallel region loses the sum where the gradient is a view.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient, group=ctx.group)
        return gradient, None


class SegmentAttention(MegatronModule):
    """Attention inside each segment of a batch; a drop-in for megatron-core's ``core_attention``.

    Causal, or bidirectional if the layer's mask type is ``no_mask`` (vision towers).

    Unpacked batches are one segment of shape [s, b, heads, dim]; packed ones (THD) are [t, heads, dim] with the
    segments' bounds in ``packed_seq_params.cu_seqlens_q``.  Under context parallelism a rank holds two of the
    ``2 x size`` chunks of every segment: number ``rank`` and number ``2 x size - 1 - rank``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.causal = attn_mask_type is not AttnMaskType.no_mask
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        left = config.window_size[0] if windowed and config.window_size else -1
        self.window: int | None = left if left >= 0 else None
        """Tokens that a query sees to its left, not counting itself; None: all."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Return the attended values with heads joined: [s, b, heads x dim], packed [t, heads x dim]."""
        if self.config.multi_latent_attention:
            key = self._share_positions(key)
        size = parallel_state.get_context_parallel_world_size()
        packed = packed_seq_params is not None
        if packed_seq_params is not None:
            bounds = [bound // size for bound in packed_seq_params.cu_seqlens_q.tolist()]
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
        else:
            bounds = [0, query.shape[0]]
        if size > 1:
            group = parallel_state.get_context_parallel_group()
            keys, values = GatherSequence.apply(key, group), GatherSequence.apply(value, group)
        else:
            keys, values = key.unsqueeze(0), value.unsqueeze(0)
        attended = [
            self._attend(query[start:end], keys[:, start:end].flatten(0, 1), values[:, start:end].flatten(0, 1))
            for start, end in pairwise(bounds)
        ]
        output = attended[0] if len(attended) == 1 else torch.cat(attended)
        output = output.flatten(2)
        return output.squeeze(1) if packed else output

    def _share_positions(self, key: Tensor) -> Tensor:
        """MLA: sum the gradient of the keys' RoPE part, which all heads share, over the tensor-parallel ranks.

        Each rank has the gradient of its own heads only, and megatron-core's local layers would not add them up.
        """
        width = self.config.qk_pos_emb_head_dim
        own, shared = key[..., :-width], key[..., :1, -width:]
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            shared = SumGradient.apply(shared, parallel_state.get_tensor_model_parallel_group())
        return torch.cat([own, shared.expand(*own.shape[:-1], width)], dim=-1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One segment: query [local, b, heads, dim], key and value [whole, b, groups, dim] -> [local, b, heads, dim]."""
        groups = query.shape[2] // key.shape[2]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
        mask = self._mask(query.shape[0], key.shape[0], query.device)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, dim]
        dropout = self.dropout if self.training else 0.0
        # Heads are split over the tensor-parallel ranks: each draws its own numbers.
        own_numbers = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if own_numbers else nullcontext():
            attended = F.scaled_dot_product_attention(
                query, key, value, mask, dropout, self.causal and mask is None, scale=self.softmax_scale
            )
        return attended.permute(2, 0, 1, 3)

    def _mask(self, local: int, whole: int, device: torch.device) -> Tensor | None:
        """True where a query of this rank sees a key; None if plain attention, causal or not, needs no mask."""
        if not self.causal or (local == whole and self.window is None):
            return None
        size = whole // local
        keys = torch.cat([positions(local, size, rank, device) for rank in range(size)])
        queries = positions(local, size, parallel_state.get_context_parallel_rank() if size > 1 else 0, device)
        distance = queries[:, None] - keys[None, :]
        mask = distance >= 0
        return mask if self.window is None else mask & (distance <= self.window)


def positions(local: int, size: int, rank: int, device: torch.device) -> Tensor:
    """Positions, within their segment, of the ``local`` tokens that a context-parallel rank holds: int64 [local]."""
    if size == 1:
        return torch.arange(local, device=device)
    half = local // 2
    first, second = rank, 2 * size - 1 - rank
    return torch.cat([torch.arange(chunk * half, (chunk + 1) * half, device=device) for chunk in (first, second)])
