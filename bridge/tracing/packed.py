"""Linear layers with packed weights (4 or 8 bits): they multiply by a matrix of ``out_features`` x ``in_features``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Unpacked(nn.Linear):
    """The layer with an unpacked weight; its input may have any number format."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the input -> features of the output."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a linear layer that does not hold its weight as one floating-point matrix."""
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not all(isinstance(size, int) for size in sizes) or next(module.children(), None) is not None:
        return False
    weight = getattr(module, "weight", None)
    whole = isinstance(weight, torch.Tensor) and weight.shape == sizes and weight.is_floating_point()
    return not whole and any(not tensor.is_floating_point() for tensor in (*module.parameters(), *module.buffers()))


def unpacked(module: Any) -> nn.Linear:
    """The same layer with an unpacked weight on the meta device, which is frozen as packed weights are."""
    bias: Any = getattr(module, "bias", None)
    layer = Unpacked(module.in_features, module.out_features, bias=bias is not None, device="meta")
    layer.requires_grad_(False)
    if layer.bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)
    return layer
