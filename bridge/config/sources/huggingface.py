"""The door for whatever Hugging Face has: a ``config.json``, a configuration object, a mapping, or a live model."""

from __future__ import annotations

from typing import Any

from bridge.config.sources.huggingface_config import HuggingFaceConfig, read_config
from bridge.config.sources.huggingface_model import from_huggingface_model

__all__ = ["HuggingFaceConfig", "from_huggingface"]


def from_huggingface(source: Any) -> HuggingFaceConfig:
    """Read a Hugging Face model or its configuration.

    Args:
        source: a mapping, a transformers config object, the path of a ``config.json`` or of a folder with one; or a live
            ``PreTrainedModel`` or ``PeftModel``, with its adapters and what it recomputes.

    Returns:
        A :class:`~bridge.config.schema.Config`: ``.model`` holds the architecture, the other sections their defaults,
        and ``.not_counted`` names the fields whose effect is left out or not known.

    Raises:
        ConfigError: no such file, no JSON, an architecture that is not known, or sizes that cannot be.
    """
    return from_huggingface_model(source) if callable(getattr(source, "named_parameters", None)) else read_config(source)
