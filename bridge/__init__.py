"""Exact FLOPs and MFU accounting for Megatron-style training.

>>> import bridge
>>> plan = bridge.compile_plan("llama3-8b", "exact")
>>> plan
Plan(convention='exact', 8,030,261,248 parameters, statistics: tokens, causal_pairs)
>>> plan.flops([8192])
421651971833856
>>> bridge.peak_flops("NVIDIA H100 80GB HBM3", "bf16")
989400000000000.0
>>> found = bridge.check("llama3-8b", tokens_per_second=13812, reported="711TFLOP/s")
>>> found.fits[0].name
'megatron'

The names below are imported on first use; only ``ThroughputCallback`` and ``trace`` need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.config import from_huggingface, load_recipe
    from bridge.flops import compile_plan
    from bridge.hardware import peak_flops
    from bridge.planning.check import check
    from bridge.tracing import trace
    from bridge.training.callbacks import ThroughputCallback

__version__ = "0.2.0"

_HOME = {
    "check": "bridge.planning.check",
    "compile_plan": "bridge.flops",
    "from_huggingface": "bridge.config",
    "load_recipe": "bridge.config",
    "peak_flops": "bridge.hardware",
    "ThroughputCallback": "bridge.training.callbacks",
    "trace": "bridge.tracing",
}

__all__ = ["ThroughputCallback", "check", "compile_plan", "from_huggingface", "load_recipe", "peak_flops", "trace"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
