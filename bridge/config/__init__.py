"""Configurations: dataclasses with megatron-core's field names, YAML recipes and command-line overrides.

The names below are imported on first use: readers of other frameworks' configurations do not need YAML.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Its module has the same name, which an import of it would put in its place.
from bridge.config.instantiate import instantiate

if TYPE_CHECKING:
    from bridge.config.loader import dump_config, load_recipe, with_overrides
    from bridge.config.named import read_config
    from bridge.config.recipes import find_recipe, list_recipes
    from bridge.config.schema import (
        CheckpointConfig,
        Config,
        DataConfig,
        HardwareConfig,
        LoggerConfig,
        ModelConfig,
        OptimizerConfig,
        ParallelConfig,
        PeftConfig,
        TrainConfig,
    )
    from bridge.config.sources.huggingface import HuggingFaceConfig, from_huggingface
    from bridge.config.sources.maxtext import MaxTextConfig, from_maxtext
    from bridge.config.validation import data_parallel_size, layout_problems, validate, validate_layout
    from bridge.flops.shapes import ConfigError

_MODULES = {
    "bridge.config.loader": ("dump_config", "load_recipe", "with_overrides"),
    "bridge.config.named": ("read_config",),
    "bridge.config.recipes": ("find_recipe", "list_recipes"),
    "bridge.config.schema": (
        "CheckpointConfig", "Config", "DataConfig", "HardwareConfig", "LoggerConfig", "ModelConfig", "OptimizerConfig",
        "ParallelConfig", "PeftConfig", "TrainConfig",
    ),
    "bridge.config.sources.huggingface": ("HuggingFaceConfig", "from_huggingface"),
    "bridge.config.sources.maxtext": ("MaxTextConfig", "from_maxtext"),
    "bridge.config.validation": ("data_parallel_size", "layout_problems", "validate", "validate_layout"),
    "bridge.flops.shapes": ("ConfigError",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "HardwareConfig",
    "HuggingFaceConfig",
    "LoggerConfig",
    "MaxTextConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PeftConfig",
    "TrainConfig",
    "data_parallel_size",
    "dump_config",
    "find_recipe",
    "from_huggingface",
    "from_maxtext",
    "instantiate",
    "layout_problems",
    "list_recipes",
    "load_recipe",
    "read_config",
    "validate",
    "validate_layout",
    "with_overrides",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found
