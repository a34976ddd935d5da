"""Megatron-Bridge's model providers and its configuration container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.config.sources import megatron_core
from bridge.config.sources.megatron_core import Options
from bridge.flops import formats
from bridge.flops.reading import Description, get, model_of
from bridge.flops.shapes import ConfigError, short

#: Fields that hold functions that build layers.
_SPECS = ("transformer_layer_spec", "mamba_stack_spec", "hybrid_stack_spec")


def recognises(model: Any) -> bool:
    """Whether this is a provider: a megatron-core config with a ``provide`` method that builds its model."""
    return callable(getattr(model, "provide", None)) or type(model).__module__.startswith("megatron.bridge.")


def translate(cfg: Any) -> Description:
    """A description of the provider ``cfg.model``, or of ``cfg`` itself."""
    provider = model_of(cfg)
    notes = megatron_core.audit(provider)
    notes.not_counted += _left_out(provider)
    found = {**megatron_core.options(provider), **_options(provider), **_precision(get(cfg, "mixed_precision"))}
    return megatron_core.describe(cfg, found, notes)


def _precision(chosen: Any) -> Options:
    """The fields that a container's mixed precision, a record or the name of one, will overwrite in the provider."""
    if isinstance(chosen, str):
        try:
            from megatron.bridge.training.mixed_precision import get_mixed_precision_config
        except ImportError as error:
            raise ConfigError(
                f"mixed_precision={short(chosen)} names a record of Megatron-Bridge that cannot be read: {error}; pass the "
                "record itself"
            ) from error
        chosen = get_mixed_precision_config(chosen)
    return {name: getattr(chosen, name) for name in formats.FIELDS if hasattr(chosen, name)}


def _options(provider: Any) -> Options:
    """Options that the classes of single families set in code."""
    names = {kind.__name__ for kind in type(provider).__mro__}
    options: Options = {}
    for family, rule in _FAMILIES.items():
        if family in names:
            options |= rule(provider)
    return options


def _gemma2(provider: Any) -> Options:
    """Norms around both blocks; its attention gives every second layer the window, from the second one on."""
    windowed = [i % 2 for i in range(get(provider, "num_layers") or 0)]
    return {"layernorm_placement": "sandwich"} | ({"window_attn_skip_freq": windowed} if get(provider, "window_size") else {})


_FAMILIES: dict[str, Callable[[Any], Options]] = {
    "Gemma2ModelProvider": _gemma2,
    "Gemma3ModelProvider": lambda provider: {"layernorm_placement": "sandwich", "qk_layernorm": True},
    "HybridModelProvider": lambda provider: {"hybrid_mla_symbol": "+"},
    "Llama4ModelProvider": lambda provider: {
        "no_rope_freq": get(provider, "no_rope_freq") or get(provider, "nope_layer_interval"),
    },
}


def _left_out(provider: Any) -> list[str]:
    found = []
    for name in _SPECS:
        builder = get(provider, name)
        module = getattr(getattr(builder, "func", builder), "__module__", None) or ""
        if builder is not None and not module.startswith("megatron."):
            found.append(f"{name}={short(builder)}: the layers that it builds are counted as megatron-core's")
    if get(provider, "vision_model_type") is not None:
        found.append(f"vision_model_type={short(get(provider, 'vision_model_type'))}: the vision tower is not counted")
    return found
