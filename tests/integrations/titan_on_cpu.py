"""torchtitan runs on devices: what it asks of one, the CPU answers once this is imported."""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import torchtitan.tools.utils as tools

os.environ["TORCHDYNAMO_DISABLE"] = "1"
tools.device_type, tools.device_module = "cpu", torch.cpu
tools.get_local_device = lambda: torch.device("cpu")
ANSWERS = {
    "get_device_name": lambda *_: "cpu",
    "set_device": lambda *_: None,
    "get_device_properties": lambda *_: SimpleNamespace(total_memory=1 << 34),
    "reset_peak_memory_stats": lambda *_: None,
    "empty_cache": lambda *_: None,
    "memory_stats": lambda *_: defaultdict(int),
}
for name, answer in ANSWERS.items():
    setattr(torch.cpu, name, answer)


def _attend(query: Any, key: Any, value: Any, *, block_mask: Any, scale: Any = None, **_: Any) -> Any:
    """FlexAttention has no backward pass on the CPU: the same mask, in full."""
    rows, size = torch.arange(query.shape[0]), torch.arange(query.shape[2])
    mask = torch.stack([block_mask.mask_mod(row, 0, size[:, None], size[None]) for row in rows])[:, None]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True), None


def _install() -> None:
    import torchtitan.distributed.utils as distributed
    from torchtitan.models.common.attention import FlexAttention

    distributed.set_pg_timeouts = lambda *_, **__: None
    FlexAttention._compiled_flex_attn = staticmethod(_attend)


_install()
