"""From a Hugging Face ``config.json`` to our configuration; neither torch nor transformers is needed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.config.schema import Config, ModelConfig
from bridge.config.sources.huggingface_families import FAMILIES, Family, Fields, Options, unknown
from bridge.flops import reading
from bridge.flops.shapes import ConfigError


@dataclass(kw_only=True)
class HuggingFaceConfig(Config):
    """A run's configuration whose ``model`` was read from a Hugging Face config."""

    model_type: str = ""
    """Hugging Face's name of the architecture."""
    framework: str = "transformers"
    """Whose matmuls are counted: transformers projects q, k and v apart, megatron-core in one matmul."""
    not_counted: tuple[str, ...] = ()
    """Fields that may change the work and that the counts leave out, one sentence each."""


def from_huggingface(config: Any) -> HuggingFaceConfig:
    """Read a Hugging Face model configuration.

    Args:
        config: a mapping, a transformers config object, or the path of a ``config.json`` or of a folder with one.

    Returns:
        A :class:`~bridge.config.schema.Config`: ``.model`` holds the architecture, the other sections their defaults,
        and ``.not_counted`` names the fields whose effect is not known.

    Raises:
        ConfigError: no such file, no JSON, an architecture that is not known, or sizes that cannot be.
    """
    values = _as_mapping(config)
    model_type = values.get("model_type")
    if not model_type:
        raise ConfigError("model_type is missing from the Hugging Face config; it names the architecture, for example 'llama'")
    options, not_counted = _read(values, model_type)
    result = HuggingFaceConfig(
        name=str(values.get("_name_or_path") or model_type).rstrip("/").rsplit("/", 1)[-1],
        model=ModelConfig(**options),
        model_type=model_type,
        framework=FAMILIES[model_type].framework,
        not_counted=tuple(not_counted),
    )
    reading.read(result)
    return result


def _read(values: Mapping[str, Any], model_type: str, place: str = "") -> tuple[Options, list[str]]:
    """The options of a config and of the language model inside it, and sentences about what is not counted."""
    options: Options = {}
    not_counted: list[str] = []
    family = _family(model_type)
    if family.text:
        values = _nested(values)
        inner = values["text_config"]
        options, not_counted = _read(inner, inner.get("model_type") or family.text, "text_config.")
    fields = Fields(values, model_type, place)
    options |= family.options(fields)
    return options, not_counted + fields.not_counted + unknown(fields)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Older files keep the language model's fields beside ``vision_config``: move them where newer ones have them."""
    inner = values.get("text_config")
    if isinstance(inner, Mapping):
        return dict(values)
    if inner is not None:
        raise ConfigError(f"text_config={inner!r} in the Hugging Face config must be an object with fields")
    outer = {name: values[name] for name in ("model_type", "vision_config", "tie_word_embeddings") if name in values}
    return {**outer, "text_config": {name: value for name, value in values.items() if name not in outer}}


def _family(model_type: str) -> Family:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(model_type, FAMILIES, n=1, cutoff=0.5)
    hint = f"the nearest known is {near[0]!r}; " if near else ""
    raise ConfigError(f"model_type={model_type!r} is not known; {hint}known are {', '.join(sorted(FAMILIES))}")


def _as_mapping(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if isinstance(config, (str, Path)):
        return _load(Path(config))
    if callable(getattr(config, "to_dict", None)):
        return config.to_dict()  # a transformers config object
    raise ConfigError(f"a Hugging Face config is a mapping, a transformers config object or a path, not {type(config).__name__}")


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a config.json or a folder that holds one") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}); give the config.json of a Hugging Face model") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a JSON {type(values).__name__}; the config.json of a Hugging Face model holds an object")
    return values
