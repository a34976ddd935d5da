"""One reader per source: it translates what describes a model to this package's names (``bridge.flops.reading.Description``)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from bridge.flops.reading import Description, get, model_of
from bridge.flops.shapes import ConfigError, short

__all__ = ["translate", "with_sections"]

#: Readers of what is neither Hugging Face's nor MaxText's, in the order in which they are asked; the last one takes everything.
READERS = ("megatron_lm", "megatron_bridge", "megatron_core")


def translate(cfg: Any) -> Any:
    """A configuration or a live model in this package's names, by the reader that its source has.

    Args:
        cfg: megatron-core's configs, Megatron-LM's arguments, Megatron-Bridge's container or provider, a Hugging Face config or
            model, MaxText's fields; the model itself or a container with ``.model``.

    Raises:
        ConfigError: the reader cannot make a model of it.
    """
    # Imported where they are chosen: most runs need one of them.
    if _is_transformers_model(cfg):
        from bridge.config.sources.huggingface_model import from_huggingface_model

        return from_huggingface_model(cfg)
    model = model_of(cfg)
    if _is_huggingface(model):
        from bridge.config.sources.huggingface import from_huggingface

        return with_sections(from_huggingface(model), cfg)
    if get(model, "decoder_block") is not None or get(model, "base_emb_dim") is not None:
        from bridge.config.sources.maxtext import from_maxtext

        return with_sections(from_maxtext(model), cfg)
    readers = (importlib.import_module(f"{__name__}.{name}") for name in READERS)
    return next(reader for reader in readers if reader.recognises(model)).translate(cfg)


def with_sections(found: Any, cfg: Any) -> Any:
    """What was read from ``cfg.model``, with the sections beside it.

    Args:
        found: a ``Description`` or a ``Config`` that a reader has made of the model alone.
        cfg: the model alone, or a container with ``.model``.

    Raises:
        ConfigError: the model was traced, and ``cfg`` has adapters, a teacher or a reference model for it.
    """
    if model_of(cfg) is cfg:
        return found
    declared = get(cfg, "not_counted")
    not_counted = (*found.not_counted, *(declared if isinstance(declared, (list, tuple)) else ()))
    traced = get(found, "traced")
    if traced is not None:
        for name in ("peft", "teacher", "reference_model"):
            if get(cfg, name):
                raise ConfigError(
                    f"{name}={short(get(cfg, name))}: beside a traced model it is not counted; trace the module with it"
                )
        traced = dataclasses.replace(traced, not_counted=not_counted)
    return Description(
        model=found.model,
        peft=get(cfg, "peft") or found.peft,
        parallel=get(cfg, "parallel") or found.parallel,
        teacher=get(cfg, "teacher"),
        reference_model=get(cfg, "reference_model") or get(found, "reference_model"),
        framework=get(cfg, "framework") or get(found, "framework"),
        not_counted=not_counted,
        hardware_unknown=get(found, "hardware_unknown") or (),
        formats=get(found, "formats"),
        traced=traced,
    )


def _is_transformers_model(cfg: Any) -> bool:
    return callable(getattr(cfg, "named_parameters", None)) and callable(getattr(getattr(cfg, "config", None), "to_dict", None))


def _is_huggingface(model: Any) -> bool:
    """A ``config.json`` names its architecture; so do the fields of an object that transformers made."""
    if isinstance(model, Mapping):
        return "model_type" in model or "architectures" in model
    return callable(getattr(model, "to_dict", None)) and isinstance(getattr(model, "model_type", None), str)
