"""Configurations: dataclasses with megatron-core's field names, YAML recipes and command-line overrides."""

from bridge.config.instantiate import instantiate
from bridge.config.loader import dump_config, find_recipe, list_recipes, load_recipe, with_overrides
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
from bridge.config.validation import data_parallel_size, validate, validate_layout
from bridge.flops.shapes import ConfigError

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "HardwareConfig",
    "HuggingFaceConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PeftConfig",
    "TrainConfig",
    "data_parallel_size",
    "dump_config",
    "find_recipe",
    "from_huggingface",
    "instantiate",
    "list_recipes",
    "load_recipe",
    "validate",
    "validate_layout",
    "with_overrides",
]
