"""One reader a source: whatever describes a model, translated to this package's names (``bridge.flops.reading.Description``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.flops.reading import Description, get, model_of

__all__ = ["translate"]


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

        return _with_sections(from_huggingface(model), cfg)
    if get(model, "decoder_block") is not None or get(model, "base_emb_dim") is not None:
        from bridge.config.sources.maxtext import from_maxtext

        return _with_sections(from_maxtext(model), cfg)
    from bridge.config.sources import megatron_bridge, megatron_core, megatron_lm

    source = next(source for source in (megatron_lm, megatron_bridge, megatron_core) if source.recognises(model))
    return source.translate(cfg)


def _with_sections(found: Any, cfg: Any) -> Any:
    """What was read from ``cfg.model`` with the sections that stand beside it."""
    if model_of(cfg) is cfg:
        return found
    declared = get(cfg, "not_counted")
    return Description(
        model=found.model,
        peft=get(cfg, "peft") or found.peft,
        parallel=get(cfg, "parallel") or found.parallel,
        teacher=get(cfg, "teacher"),
        reference_model=get(cfg, "reference_model") or get(found, "reference_model"),
        framework=get(cfg, "framework") or get(found, "framework"),
        not_counted=(*found.not_counted, *(declared if isinstance(declared, (list, tuple)) else ())),
    )


def _is_transformers_model(cfg: Any) -> bool:
    return callable(getattr(cfg, "named_parameters", None)) and callable(getattr(getattr(cfg, "config", None), "to_dict", None))


def _is_huggingface(model: Any) -> bool:
    """A ``config.json`` names its architecture; so do the fields of an object that transformers made."""
    if isinstance(model, Mapping):
        return "model_type" in model or "architectures" in model
    return callable(getattr(model, "to_dict", None)) and isinstance(getattr(model, "model_type", None), str)
