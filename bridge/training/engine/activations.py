"""Activations as torch runs them, by the names under which they are counted (``flops.elementwise.ACTIVATIONS``)."""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.activations import quick_gelu, squared_relu

FUNCTIONS = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "squared_relu": squared_relu,
}
