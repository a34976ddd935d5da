"""From a Hugging Face ``config.json`` to our configuration; neither torch nor transformers is needed."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.config.schema import Config, ModelConfig
from bridge.config.sources.huggingface_families import FAMILIES, Family, Options
from bridge.config.sources.huggingface_fields import OBJECT, TEXT, Fields, Unread
from bridge.config.sources.huggingface_quantisation import formats_of
from bridge.flops import reading
from bridge.flops.formats import NOT_TOLD
from bridge.flops.shapes import ConfigError, short

#: Bytes of the largest file that is opened; published ones stay below a megabyte.
MAX_FILE_SIZE = 2**24


@dataclass(kw_only=True)
class HuggingFaceConfig(Config):
    """A run's configuration whose ``model`` was read from a Hugging Face config."""

    model_type: str = ""
    """Hugging Face's name of the architecture."""
    framework: str = "transformers"
    """Whose matmuls are counted: transformers projects q, k and v apart, megatron-core in one matmul."""
    not_counted: tuple[str, ...] = ()
    """One sentence each: a field and what the counts leave out because of it; and, beginning with ``not recognized:``, fields
    that are unknown."""
    formats: Any = NOT_TOLD  # of Formats, which OmegaConf cannot hold
    """Which matmul runs in which number format, as far as that is known."""
    traced: reading.Model | None = None
    """The traced model, where no reader knows the architecture or the model differs from its configuration."""

    @property
    def source(self) -> str:
        """How the model was found: ``read`` or ``traced``."""
        return "traced" if self.traced else "read"


def read_config(config: Any) -> HuggingFaceConfig:
    """Read a mapping, a transformers config object, or a file; trace its model if no row describes it.

    See ``bridge.config.from_huggingface``.
    """
    values = _as_mapping(config)
    try:
        return read_by_row(values)
    except Unread as reason:
        return _traced(values, _model_type(values), reason)


def read_by_row(values: Mapping[str, Any]) -> HuggingFaceConfig:
    """Read a configuration by its family's row.

    Raises:
        Unread: no row describes it.
        ConfigError: it does not describe a model.
    """
    model_type = _model_type(values)
    if not model_type:
        raise ConfigError("model_type is missing from the Hugging Face config; it names the architecture, for example 'llama'")
    family = _family(model_type)
    if family.inner:
        raise Unread(f"model_type={short(model_type)} outside of another configuration is a model without an output layer")
    options, not_counted = _read(values, model_type)
    _check_sizes_are_stated(values, family, model_type)
    result = HuggingFaceConfig(
        name=_name(values, model_type),
        model=ModelConfig(**options),
        model_type=model_type,
        framework=family.framework,
        not_counted=tuple(not_counted),
        formats=formats_of(values),
    )
    reading.read(result)
    return result


def _name(values: Mapping[str, Any], model_type: str) -> str:
    return str(values.get("_name_or_path") or model_type).rstrip("/").rsplit("/", 1)[-1]


#: A package of a higher floor, imported by name when no reader knows a model.
TRACING = "bridge.tracing"


def _traced(values: Mapping[str, Any], model_type: str, unread: Unread) -> HuggingFaceConfig:
    """A model that no row describes, traced as transformers runs it.

    Raises:
        ConfigError: transformers does not know the architecture either, or is not installed.
    """
    try:
        if not set(values) - {"model_type", "architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype"}:
            raise ConfigError("the file has no fields of a model, so there is nothing to trace")
        traced = importlib.import_module(TRACING).trace(dict(values))
    except ConfigError as error:
        raise ConfigError(f"{unread}; {error}") from error
    traced = dataclasses.replace(traced, formats=formats_of(values))
    return HuggingFaceConfig(
        name=_name(values, model_type),
        model=ModelConfig(seq_length=nominal_length(values)),
        model_type=model_type,
        not_counted=traced.not_counted,
        traced=traced,
    )


#: Names that families give to the longest sequence that they are made for.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions", "n_ctx")
#: Where a configuration names none, as those of models without positions.
NOMINAL_LENGTH = 4096


def nominal_length(values: Mapping[str, Any]) -> int:
    """Tokens per sequence if a batch does not say."""
    parts = [values, *(values.get(name) for name in ("text_config", "decoder_config"))]
    found = (part.get(name) for part in parts if isinstance(part, Mapping) for name in _POSITIONS)
    return next((value for value in found if isinstance(value, int) and value > 0), NOMINAL_LENGTH)


def _read(values: Mapping[str, Any], model_type: str, place: str = "") -> tuple[Options, list[str]]:
    """The options of a config and of the language model inside it, and sentences about what is not counted."""
    options: Options = {}
    not_counted: list[str] = []
    family = _family(model_type)
    if family.text:
        values = _nested(values)
        inner = values["text_config"]
        options, not_counted = _read(inner, _model_type(inner) or family.text, "text_config.")
    fields = Fields(values, model_type, place)
    options |= family.options(fields)
    return options, not_counted + fields.sentences()


def _model_type(values: Mapping[str, Any]) -> str:
    return Fields(values, "").get("model_type", kind=TEXT) or ""


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Older files keep the language model's fields beside ``vision_config``: move them where newer ones have them."""
    if Fields(values, "").get("text_config", kind=OBJECT) is not None:
        return dict(values)
    outer = {name: values[name] for name in ("model_type", "vision_config", "tie_word_embeddings") if name in values}
    return {**outer, "text_config": {name: value for name, value in values.items() if name not in outer and value is not None}}


_SIZES = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "hidden_size", "d_model", "n_layer")
_PARTS = ("vision_config", "global_config", "encoder_config", "decoder_config")


def _check_sizes_are_stated(values: Mapping[str, Any], family: Family, model_type: str) -> None:
    """Refuse a file that states neither depth nor width: class defaults do not make a model of it.

    transformers writes all sizes of a model into its file; only configurations inside it may leave out sizes that are their
    class's defaults.
    """
    if not any(name in values for name in ("text_config", *_SIZES, *(() if family.text else _PARTS))):
        raise ConfigError(
            f"the Hugging Face config of model_type={short(model_type)} has neither a depth nor a width, for example "
            "num_hidden_layers and hidden_size; give the config.json of a whole model"
        )


def _family(model_type: str) -> Family:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise Unread(_unknown_family(model_type))


def _unknown_family(model_type: str) -> str:
    meant = _misspelt(model_type)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"model_type={short(model_type)} is not known; {hint}bridge reads {len(FAMILIES)} others (docs/models.md)"


#: Families of transformers whose names are close to those of ours; they are not misspellings.
_SPELT_ALIKE = (
    *("pixtral", "gemma3n_text", "ernie4_5_vl_moe", "gpt_neo"),
    *("clip_vision_model", "blip_vision_model", "xclip_vision_model"),
)


def _misspelt(model_type: str) -> str:
    """The family that a misspelt name means, empty for none.

    Families of one vendor have similar names: other digits, or a known name with more around it, are another family.
    """
    spelt = model_type[:100].lower().replace("-", "_")
    alike = difflib.get_close_matches(spelt, FAMILIES, n=1, cutoff=0.85) if spelt not in _SPELT_ALIKE else []
    return "".join(name for name in alike if _digits(name) == _digits(spelt) and (name == spelt or name not in spelt))


def _digits(name: str) -> list[str]:
    return re.findall(r"\d", name)


def _as_mapping(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if isinstance(config, (str, Path)):
        return _load(Path(config))
    if callable(getattr(config, "to_dict", None)):
        return config.to_dict()  # a transformers config object
    raise ConfigError(
        f"a Hugging Face config must be a mapping, a transformers config object or a path, not {type(config).__name__}"
    )


def _load(path: Path) -> Mapping[str, Any]:
    file = path
    try:
        file = path / "config.json" if path.is_dir() else path
        _check_regular(file)
        values = json.loads(file.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a config.json or a folder that holds one") from None
    except RecursionError:
        raise ConfigError(f"{file} is nested too deeply; give the config.json of a Hugging Face model") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}); give the config.json of a Hugging Face model") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a JSON {type(values).__name__}; the config.json of a Hugging Face model holds an object")
    return values


def _check_regular(file: Path) -> None:
    """Opening a pipe or a device could wait for ever."""
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is not a regular file; give a config.json or a folder that holds one")
    if file.exists() and file.stat().st_size > MAX_FILE_SIZE:
        raise ConfigError(f"{file} has more than {MAX_FILE_SIZE} bytes; give the config.json of a Hugging Face model")
