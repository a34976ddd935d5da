"""From a live transformers model to our configuration: its config, peft's adapters on it, and what it recomputes.

Adapters are read from the model itself, layer by layer, since ``target_modules`` may be names, a pattern or "all-linear".
"""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any

from bridge.config.schema import ModelConfig, PeftConfig
from bridge.config.sources.huggingface_config import TRACING, HuggingFaceConfig, read_by_row
from bridge.config.sources.huggingface_names import LINEAR_LAYERS
from bridge.config.sources.huggingface_quantisation import formats_of, formats_of_layers
from bridge.flops.plan import compile_plan
from bridge.flops.shapes import ConfigError

#: A table that transformers itself never trains (Whisper's sinusoids), and the plan's name for it.
_FIXED_TABLE = re.compile(r"(^|\.)encoder\.embed_positions\.weight$")
_FIXED_TABLE_PATH = "audio_model.embed_positions"
#: A linear layer of the language model: towers and encoders have their own layers, which are not read.
_LAYER = re.compile(r"(?:^|\.)model\.(?:language_model\.|decoder\.)?layers\.(\d+)\.(\w+\.\w+)$")
#: A weight of an adapter, and the adapter's name.
_ADAPTER = re.compile(r"\.lora_[AB]\.(\w+)\.")
_REMEDY = "Give the configuration of the run yourself: config=..."


def from_huggingface_model(model: Any) -> HuggingFaceConfig:
    """Read a transformers model as it is about to be trained.

    Its configuration is read where that describes the model; where it does not, or has other parameters than the model that was
    built (another head, adapters on a tower), the model itself is traced.

    Args:
        model: a ``PreTrainedModel``, or a ``PeftModel`` around one.

    Raises:
        ConfigError: it can neither be read nor be traced.
    """
    try:
        result = _read(model)
        if not _is_whole(model) or _equals(result, model):
            result.formats = (
                formats_of_layers(model, (term.path for term in compile_plan(result, "exact").terms)) or result.formats
            )
            return result
        refusal = None
    except ConfigError as error:
        refusal = error
    try:
        return traced_model(model)
    except ConfigError as error:
        raise ConfigError(f"{refusal or 'its configuration describes another model'}; {error}") from error


def traced_model(model: Any) -> HuggingFaceConfig:
    """A transformers model as it runs, regardless of its configuration.

    Raises:
        ConfigError: it cannot be traced.
    """
    traced = importlib.import_module(TRACING).trace(model)
    kind = getattr(model.config, "model_type", "") or type(model).__name__
    formats = formats_of_layers(model, (term.path for term in traced.traced)) or formats_of(model.config.to_dict())
    traced = replace(traced, formats=formats)
    return HuggingFaceConfig(name=kind, model=ModelConfig(), model_type=kind, not_counted=traced.not_counted, traced=traced)


def _is_whole(model: Any) -> bool:
    """Whether its parameters have their own sizes: sharded and quantized ones do not."""
    parameters = list(model.parameters())
    sharded = any(
        hasattr(parameter, name) for parameter in parameters for name in ("ds_id", "device_mesh", "_flat_param", "quant_state")
    )
    return not sharded and all(parameter.numel() and parameter.is_floating_point() for parameter in parameters)


def _parameters(model: Any) -> list[tuple[str, Any]]:
    """Names and parameters, without those of adapters that are off, such as a copy that is kept to compare with."""
    on = {adapter for module in model.modules() if getattr(module, "lora_A", None) for adapter in module.active_adapters}
    return [(name, one) for name, one in model.named_parameters() if (own := _ADAPTER.search(name)) is None or own[1] in on]


def _equals(result: HuggingFaceConfig, model: Any) -> bool:
    """Whether a configuration has as many parameters as the model, in total and among those that train."""
    counted = compile_plan(result, "exact").parameters()
    sizes = [(parameter.numel(), parameter.requires_grad) for _, parameter in _parameters(model)]
    trains = sum(size for size, needed in sizes if needed)
    return (counted["total"], counted["trainable"]) == (sum(size for size, _ in sizes), trains)


def _read(model: Any) -> HuggingFaceConfig:
    """Read a model by its configuration.

    Raises:
        ConfigError: no row describes the architecture; or some weights are frozen, adapted or recomputed in a way that is not
            described here.
    """
    result = read_by_row(model.config.to_dict())
    result.peft = _adapters(model, latent=bool(result.model.multi_latent_attention))
    _read_checkpointing(model, result)
    fixed = [name for name, parameter in model.named_parameters() if _FIXED_TABLE.search(name) and not parameter.requires_grad]
    for name, parameter in _parameters(model):
        adapter = _ADAPTER.search(name) is not None
        if name not in fixed and parameter.requires_grad != (adapter or result.peft is None):
            state = "trains" if parameter.requires_grad else "is frozen"
            raise ConfigError(
                f"{name} {state}: only models that train in full or with LoRA adapters alone can be read. {_REMEDY}"
            )
    if fixed and result.peft is None:
        result.peft = PeftConfig(kind="freeze", freeze=[_FIXED_TABLE_PATH])
    return result


def _read_checkpointing(model: Any, result: HuggingFaceConfig) -> None:
    """Whether layers run again in the backward pass, and how (torch's reentrant checkpoint or the newer one)."""
    layers = [module for name, module in model.named_modules() if re.search(r"(^|\.)layers\.\d+$", name)]
    again = [layer for layer in layers if getattr(layer, "gradient_checkpointing", False)]
    if not again:
        return
    if len(again) < len(layers):
        raise ConfigError(
            f"{len(again)} of {len(layers)} layers are recomputed: only models that recompute all layers or none can be read. "
            f"{_REMEDY}"
        )
    result.model.recompute_granularity, result.model.recompute_method, result.model.recompute_num_layers = "full", "uniform", 1
    if getattr(again[0]._gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
        result.framework += "_reentrant"


def _adapters(model: Any, *, latent: bool) -> PeftConfig | None:
    """peft's LoRA adapters, one target per layer; None without any."""
    ranks, targets = set(), []
    for name, module in model.named_modules():
        if not getattr(module, "lora_A", None):
            continue
        ranks |= {module.r[adapter] for adapter in module.active_adapters}
        place = _LAYER.search(name)
        if place is None or place[2] not in LINEAR_LAYERS or len(module.active_adapters) != 1:
            raise ConfigError(f"the adapter on {name} cannot be priced. {_REMEDY}")
        path = LINEAR_LAYERS[place[2]]
        if latent and path == "self_attention.linear_q":
            path = "self_attention.linear_q_proj"  # latent attention with whole queries
        targets.append(f"decoder.layers.{place[1]}.{path}")
    if not targets:
        return None
    if len(ranks) > 1:
        raise ConfigError(f"adapters of ranks {sorted(ranks)}: all adapters must have the same rank to be read. {_REMEDY}")
    return PeftConfig(dim=ranks.pop(), target_modules=targets)
