"""RMSNorm and LayerNorm for megatron-core's local layers, under any parallel layout.

megatron-core's own wrapper of torch's norms refuses sequence parallelism.  Only the gradient of the weight must then be summed
over the tensor-parallel ranks, which megatron-core does for parameters with ``sequence_parallel`` set.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig


class Norm(torch.nn.Module):
    """The norm ``config.normalization`` over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        """``hidden_size``: width; ``eps``: added to the variance. Other arguments of megatron-core's norms are ignored."""
        super().__init__()
        self.eps = eps
        self.centered = config.normalization == "LayerNorm"
        self.offset = 1.0 if config.layernorm_zero_centered_gamma else 0.0
        self.weight = torch.nn.Parameter(torch.full((hidden_size,), 1.0 - self.offset))
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size)) if self.centered else None
        for parameter in self.parameters():
            # Under sequence parallelism each rank sees its part of the sequence: gradients are summed.
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hidden_size] -> the same shape and type."""
        weight = self.weight + self.offset if self.offset else self.weight
        if self.centered:
            return F.layer_norm(x, weight.shape, weight, self.bias, self.eps)
        return F.rms_norm(x, weight.shape, weight, self.eps)


class ReplicatedNorm(Norm):
    """A norm whose input is whole on every tensor-parallel rank (the latent of MLA's queries).

    megatron-core sums the gradient of everything called ``q_layernorm`` over the tensor-parallel ranks, which is right
    for heads that are split over them; here every rank already holds the whole gradient, so the ranks are averaged.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps)
        for parameter in self.parameters():
            parameter.average_gradients_across_tp_domain = not config.sequence_parallel
