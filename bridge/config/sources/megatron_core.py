"""megatron-core's configs (``TransformerConfig`` and its subclasses), and anything that uses their names."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge.config.sources.megatron_fields import HARDWARE, NEUTRAL, READ, REPORTED
from bridge.flops import formats
from bridge.flops.reading import Description, get, model_of
from bridge.flops.shapes import ModelShape, short

#: The names under which a ``ModelShape`` is read as it is.
OWN = tuple(item.name for item in dataclasses.fields(ModelShape))
#: Parts beside the language model that its reader finds on the model.
_BESIDE = ("thinker_config", "deepstack_visual_indexes", "teacher")
#: Older and other names -> ours, where ours is not set.
_ALIASES = {
    "hybrid_override_pattern": "hybrid_layer_pattern",
    "per_layer_embed_dim": "hidden_size_per_layer_input",
    "per_layer_embed_vocab_size": "vocab_size_per_layer_input",
}

Options = dict[str, Any]


def recognises(model: Any) -> bool:
    """The fallback reader: fields have megatron-core's names, or are reported as not recognized."""
    return True


def translate(cfg: Any) -> Description:
    """A description of ``cfg.model``, or of ``cfg`` itself, with the sections beside it."""
    model = model_of(cfg)
    return describe(cfg, options(model), audit(model))


def options(model: Any) -> Options:
    """Our fields as they are there."""
    found = {name: value for name in (*OWN, *_BESIDE, *formats.FIELDS) if (value := get(model, name)) is not None}
    for other, ours in _ALIASES.items():
        value = get(model, other)
        if value is not None:
            found.setdefault(ours, value)
    if get(model, "enable_mhc_connections"):
        found.setdefault("hc_mult", get(model, "mhc_num_residual_streams") or MHC_STREAMS)
    found.setdefault("block_configs", _block_configs(model))
    return found


#: megatron-core's mhc_num_residual_streams.
MHC_STREAMS = 4
#: Where blocks that differ from layer to layer are described.
_BLOCKS = {
    "heterogeneous_block_specs",
    "heterogeneous_layers_config_path",
    "heterogeneous_layers_config_encoded_json",
    "per_block_parameters",
}
#: Such a description of 162 layers has 60 kB.
_LARGEST_DESCRIPTION = 1 << 24


def _block_configs(model: Any) -> list[Any] | None:
    """Blocks that differ from layer to layer, from megatron-core's records, its JSON text or its file; None where unreadable."""
    built, text = get(model, "per_block_parameters"), get(model, "heterogeneous_layers_config_encoded_json")
    if isinstance(built, list) and built and all(map(dataclasses.is_dataclass, built)):
        return [dataclasses.asdict(block) for block in built]
    try:
        text = text or _text(get(model, "heterogeneous_layers_config_path"))
        return json.loads(text)["block_configs"] if text else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(path: Any) -> str:
    file = Path(path or "")
    readable = bool(path) and file.is_file() and file.stat().st_size <= _LARGEST_DESCRIPTION
    return file.read_text() if readable else ""


def describe(cfg: Any, options: Options, notes: Audit, *, freeze: Any = None) -> Description:
    """The model's options with the sections of ``cfg``."""
    for name in ("vocab_size", "seq_length"):
        if get(cfg, name) is not None:
            options.setdefault(name, get(cfg, name))
    declared = get(cfg, "not_counted")
    return Description(
        model=options,
        peft=get(cfg, "peft") if freeze is None else freeze,
        parallel=get(cfg, "parallel") or model_of(cfg),
        teacher=get(cfg, "teacher"),
        reference_model=bool(get(cfg, "reference_model")),
        framework=get(cfg, "framework"),
        not_counted=(*notes.not_counted, *(declared if isinstance(declared, (list, tuple)) else ())),
        hardware_unknown=notes.hardware_unknown,
    )


# ---- the audit ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Audit:
    """The unread fields: sentences about the count, and about what else the hardware runs."""

    not_counted: list[str] = dataclasses.field(default_factory=list)
    hardware_unknown: list[str] = dataclasses.field(default_factory=list)


def audit(model: Any) -> Audit:
    """Go through every field that a configuration has."""
    found = Audit()
    known = READ | set(OWN) | (_BLOCKS if _block_configs(model) else set())
    for name, value, default in _fields(model):
        if name in known or name in NEUTRAL or name.startswith("_"):
            continue
        if name in HARDWARE:
            if value not in HARDWARE[name]:
                found.hardware_unknown.append(f"{name}={short(value)}: its recomputation or padding is unknown")
        elif name in REPORTED:
            harmless, consequence = REPORTED[name]
            if value not in harmless:
                found.not_counted.append(f"{name}={short(value)}: {consequence}")
        elif _is_set(value) and not _same(value, default):
            found.not_counted.append(f"not recognized: {name}={short(value)}{_hint(name)}")
    return found


def _fields(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of every field; an undeclared default is None."""
    if isinstance(model, Mapping):
        for name, value in model.items():
            yield str(name), value, None
        return
    declared = {item.name: item for item in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
    for name in dict.fromkeys((*declared, *getattr(model, "__dict__", {}))):
        item = declared.get(name)
        yield name, getattr(model, name, None), _default(item) if item else None


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def _is_set(value: Any) -> bool:
    """More than zero, false or empty; functions and modules are not fields."""
    try:
        return not callable(value) and bool(value)
    except Exception:  # an array, say
        return True


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value == default)
    except Exception:  # an array, say
        return False


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, (*OWN, *READ), n=1, cutoff=0.85)
    return f"; did you mean {near[0]}?" if near else ""
