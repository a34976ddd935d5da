"""Where a model comes from: a recipe's name, or the text of a Hugging Face ``config.json``.

The text is untrusted: it is parsed as JSON only, and sizes that would take too long to count are refused first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from bridge.config import Config, PeftConfig, from_huggingface, list_recipes, load_recipe
from bridge.flops import ConfigError, Plan, compile_plan

#: A config.json has a few KiB; with class names of a classifier it may have more.
MAX_CONFIG_BYTES = 256 * 1024
#: Counting takes longer with more layers; this is twice as many as the deepest published models have.
MAX_LAYERS = 256
#: The name of the pasted configuration in the list of recipes.
OWN_MODEL = "config.json (below)"
_LARGEST = 2**53


@dataclass(frozen=True)
class Source:
    """A recipe's name, or a config.json's text, which wins."""

    recipe: str
    config: str = ""

    @property
    def name(self) -> str:
        """The model's name in figures."""
        return read(self).name


def model_names() -> list[str]:
    """All recipes: bare models first, then those that train."""
    return [path.stem for path in sorted(list_recipes(), key=lambda path: (path.parent.name != "models", path.stem))]


@lru_cache(maxsize=64)
def read(source: Source) -> Config:
    """The configuration; ConfigError if it is not one of a known model."""
    if not source.config.strip():
        return load_recipe(source.recipe, validate=False)
    values = parse(source.config)
    try:
        return _drawable(from_huggingface(values))
    except (TypeError, AttributeError, ArithmeticError, LookupError) as error:  # a value of a type that no such file has
        raise ConfigError(f"config.json has a value of the wrong type or size: {error}") from None


def _drawable(config: Config) -> Config:
    """The configuration, unless all its stacks together have too many layers."""
    model = config.model
    layers = (model.num_layers or len(model.hybrid_layer_pattern or "")) + (model.encoder_num_layers or 0)
    if layers > MAX_LAYERS:
        raise ConfigError(f"config.json: {layers} layers are more than the {MAX_LAYERS} that this page draws")
    return config


def parse(text: str) -> Mapping[str, Any]:
    """The object in a config.json.

    Raises:
        ConfigError: it is too long, not JSON, not an object, or has numbers that no model has.
    """
    if len(text.encode(errors="replace")) > MAX_CONFIG_BYTES:
        raise ConfigError(f"config.json is longer than {MAX_CONFIG_BYTES // 1024} KiB; paste the model's config.json alone")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ConfigError("config.json is nested too deeply; paste the model's config.json alone") from None
    except ValueError as error:
        raise ConfigError(f"config.json is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config.json holds a JSON {type(values).__name__}; the config.json of a model holds an object")
    for name, number in _numbers(values):
        if abs(number) > _LARGEST:
            raise ConfigError(f"config.json: {name}={number:.3g} is larger than any model's")
        if number > MAX_LAYERS and ("layers" in name or "pattern" in name or name == "depth"):
            raise ConfigError(f"config.json: {name} says {number:g} layers, more than the {MAX_LAYERS} that this page draws")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) for every number in a configuration, and for the length of every layer pattern."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, str) and "pattern" in name:
        yield name, len(value)
    elif isinstance(value, (int, float)):
        yield name, value


@lru_cache(maxsize=256)
def compiled(source: Source, convention: str, tensor_size: int = 1, training: Training | None = None) -> Plan:
    """The plan of a model, for a tensor-parallel size and a way to train."""
    config = read(source)
    config = replace(config, model=replace(config.model, tensor_model_parallel_size=tensor_size))
    if training is not None:
        config = replace(config, peft=training.peft)
    return compile_plan(config, convention)


@dataclass(frozen=True)
class Training:
    """What trains: adapters, or everything but what is frozen.

    Attributes:
        rank: the rank of the adapters; 0: there are none.
        targets: the layers that get an adapter.
        freeze: patterns of the modules that do not train.
        kind: the kind of adapter, as in ``PeftConfig.kind``.
    """

    rank: int = 0
    targets: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    kind: str = "lora"

    @property
    def peft(self) -> PeftConfig | None:
        """The section ``peft`` of a configuration."""
        if self.rank:
            return PeftConfig(kind=self.kind, dim=self.rank, target_modules=list(self.targets), freeze=list(self.freeze))
        return PeftConfig(kind="freeze", freeze=list(self.freeze)) if self.freeze else None
