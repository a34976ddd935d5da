"""Exact FLOPs of transformer-like models, from the configuration and the batches that ran.  Standard library only.

Compiling is imported when it is first asked for: a command that counts nothing does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bridge.flops.errors import ConfigError

if TYPE_CHECKING:
    from bridge.flops.plan import Plan, compile_plan

__all__ = ["ConfigError", "Plan", "compile_plan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bridge.flops.plan"), name)
