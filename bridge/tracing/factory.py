"""A model by the function that makes it: ``package.module:factory``, as ``bridge flops --trace`` takes it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from bridge.config.schema import ModelConfig
from bridge.config.sources.huggingface_config import NOMINAL_LENGTH, HuggingFaceConfig
from bridge.flops.shapes import ConfigError, short
from bridge.tracing import trace


def from_factory(place: str) -> HuggingFaceConfig:
    """What ``factory()`` returns, traced.

    Args:
        place: ``package.module:factory``, found as ``import`` finds it and in the current folder.  The factory takes no
            arguments and returns a ``torch.nn.Module`` (which takes no memory on the meta device), or a pair of a module and
            ``inputs`` as :func:`bridge.tracing.tracing.trace` takes them.

    Raises:
        ConfigError: there is no such factory, it fails, or what it returns cannot be traced.
    """
    made = _call(place)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not hasattr(model, "named_parameters"):
        raise ConfigError(f"--trace {short(place)}: it returned a {type(model).__name__}; return a torch.nn.Module")
    traced = trace(model, inputs)
    return HuggingFaceConfig(
        name=place, model=ModelConfig(seq_length=NOMINAL_LENGTH), not_counted=traced.not_counted, traced=traced
    )


def _call(place: str) -> Any:
    module, _, name = place.partition(":")
    if not module or not name.isidentifier():
        raise ConfigError(f"--trace {short(place)} must be package.module:factory, for example models.mine:small")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)()
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"--trace {short(place)}: {type(error).__name__}: {error}") from error
