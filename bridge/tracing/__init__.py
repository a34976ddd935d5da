"""Any module as a plan: a model that no reader knows runs on the meta device, and every matrix product becomes a term.

Importing this package does not import torch; ``trace`` does.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from bridge.flops.reading import Model
from bridge.flops.shapes import ConfigError
from bridge.tracing import cache

__all__ = ["trace"]


def trace(model: Any, inputs: Any = None) -> Model:
    """See :func:`bridge.tracing.tracing.trace`; the trace of a configuration is kept on disk (:mod:`bridge.tracing.cache`).

    Raises:
        ConfigError: torch or transformers is not installed.
    """
    described = isinstance(model, dict) and inputs is None
    if described and (kept := cache.load(model)) is not None:
        return kept
    wanted = ("torch", "transformers") if isinstance(model, dict) else ("torch",)
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracing a model needs the package {name}, which is not installed: pip install {name}")
    from bridge.tracing.tracing import trace as run

    found = run(model, inputs)
    if described:
        cache.store(model, found)
    return found
