"""Exact FLOPs of transformer-like models, from the configuration and the batches that ran.  Standard library only."""

from bridge.flops.plan import Plan, compile_plan
from bridge.flops.shapes import ConfigError

__all__ = ["ConfigError", "Plan", "compile_plan"]
