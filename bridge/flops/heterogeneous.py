"""Blocks that differ from layer to layer: attention or MLP left out, replaced by one matrix, or of another width.

The grammar is that of ``block_configs`` in Hugging Face's config.json of Nemotron Super and Ultra, which megatron-core reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.flops.shapes import ConfigError, ModelShape, short, whole

#: The widths of MLPs that are given as a factor are rounded up to a multiple of this.
_MULTIPLE = 256


@dataclass(frozen=True)
class Block:
    """What one layer has.

    Attributes:
        attention, mlp: the name of what takes its place, empty for nothing; None for the model's own.
        num_query_groups: key/value heads of its attention; 0: the model's.
        ffn_hidden_size: width of its MLP; 0: the model's.
    """

    attention: str | None = None
    mlp: str | None = None
    num_query_groups: int = 0
    ffn_hidden_size: int = 0


def blocks(shape: ModelShape) -> list[Block]:
    """The blocks of a model's decoder layers, first to last, where it has ``block_configs``.

    Raises:
        ConfigError: There is not one per layer, or one of them is impossible.
    """
    configs, count = shape.block_configs, shape.num_layers or 0
    if not isinstance(configs, (list, tuple)) or not all(isinstance(config, Mapping) for config in configs):
        raise ConfigError(f"model.block_configs={short(configs)} must be a list with a mapping for each layer")
    if len(configs) != count:
        raise ConfigError(f"model.block_configs has {len(configs)} entries, but model.num_layers={count}: give one per layer")
    return [_block(shape, config, f"model.block_configs[{i}]") for i, config in enumerate(configs)]


def _block(shape: ModelShape, config: Mapping[str, Any], name: str) -> Block:
    attention, mlp = config.get("attention") or {}, config.get("ffn") or config.get("mlp") or {}
    for part, given in (("attention", attention), ("ffn", mlp)):
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}.{part}={short(given)} must be a mapping")
    return Block(_instead(attention), _instead(mlp), _groups(shape, attention, name), _width(shape, mlp, name))


def _instead(config: Mapping[str, Any]) -> str | None:
    if config.get("no_op"):
        return ""
    return "linear" if config.get("replace_with_linear") else None


def _groups(shape: ModelShape, config: Mapping[str, Any], name: str) -> int:
    heads = shape.num_attention_heads or 0
    option = "num_query_groups" if config.get("num_query_groups") is not None else "n_heads_in_group"
    value = config.get(option)
    if value is None:
        return 0
    size = whole(f"{name}.attention.{option}", value)
    if heads % size:
        raise ConfigError(f"{name}.attention.{option}={size} does not divide model.num_attention_heads={heads}")
    return size if option == "num_query_groups" else heads // size


def _width(shape: ModelShape, config: Mapping[str, Any], name: str) -> int:
    width, factor = config.get("ffn_hidden_size"), config.get("ffn_mult")
    if width is not None:
        return whole(f"{name}.ffn.ffn_hidden_size", int(width) if isinstance(width, float) and width.is_integer() else width)
    if factor is None:
        return 0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
        raise ConfigError(f"{name}.ffn.ffn_mult={short(factor)} must be a positive number")
    return -(-int(2 * factor * (shape.hidden_size or 0) / 3) // _MULTIPLE) * _MULTIPLE
