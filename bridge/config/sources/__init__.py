"""One reader a source: whatever describes a model, translated to this package's names (``bridge.flops.reading.Description``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.flops.reading import get, model_of

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

        return from_huggingface(model)
    if get(model, "decoder_block") is not None or get(model, "base_emb_dim") is not None:
        from bridge.config.sources.maxtext import from_maxtext

        return from_maxtext(model)
    from bridge.config.sources import megatron_bridge, megatron_core, megatron_lm

    source = next(source for source in (megatron_lm, megatron_bridge, megatron_core) if source.recognises(model))
    return source.translate(cfg)


def _is_transformers_model(cfg: Any) -> bool:
    return callable(getattr(cfg, "named_parameters", None)) and callable(getattr(getattr(cfg, "config", None), "to_dict", None))


def _is_huggingface(model: Any) -> bool:
    """A ``config.json`` names its architecture; so do the fields of an object that transformers made."""
    if isinstance(model, Mapping):
        return "model_type" in model or "architectures" in model
    return callable(getattr(model, "to_dict", None)) and isinstance(getattr(model, "model_type", None), str)
