"""Exact FLOPs of transformer-like models, from the configuration and the batches that ran.  Standard library only."""

from bridge.flops.model_shape import ConfigError
from bridge.flops.plan import Plan, compile_plan

__all__ = ["ConfigError", "Plan", "compile_plan"]
