"""A Hugging Face config as a module on the meta device, and the output from which a loss is computed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch

from bridge.flops.shapes import ConfigError, short

#: Auto classes that are searched, in this order, for the class of a model type whose config names none.
_AUTO = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MASKED_LM", "PRETRAINING", "MULTIMODAL_LM")


def build(values: Mapping[str, Any]) -> torch.nn.Module:
    """The model of a ``config.json`` on the meta device.

    Raises:
        ConfigError: the installed transformers does not know the model type, or cannot build it.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"model_type={short(kind)} is not known to transformers {transformers.__version__} either")
    try:
        config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(values)))
        prepare(config)
        with torch.device("meta"):
            return _model_class(config, kind)._from_config(config, attn_implementation="eager")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"transformers cannot build model_type={short(kind)}: {type(error).__name__}: {error}") from error


#: Attention that runs without a GPU; flash, flex and other kernels do the same work on the same masks.
_ANYWHERE = (None, "eager", "sdpa")


def prepare(config: Any) -> None:
    """Select experts and attention that run on any device, and turn layer dropout off."""
    for one in (config, *(value for value in vars(config).values() if hasattr(value, "model_type"))):
        one._experts_implementation = "batched_mm"
        if getattr(one, "_attn_implementation", None) not in _ANYWHERE:
            one._attn_implementation = "eager"
        keep_layers(one)


def keep_layers(holder: Any) -> None:
    """Turn layer dropout off in a module or a config."""
    for name, value in vars(holder).items():
        if name.endswith("layerdrop") and isinstance(value, (int, float)):
            setattr(holder, name, 0.0)


def _model_class(config: Any, kind: str) -> Any:
    """The class that the config names, else the first with a language model's head, else the bare model."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for task in _AUTO:
        name = getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").get(kind)
        if name:
            return getattr(transformers, name)
    name = auto.MODEL_MAPPING_NAMES.get(kind)
    if not name:
        raise ConfigError(f"transformers has no model for model_type={short(kind)}; give architectures")
    return getattr(transformers, name if isinstance(name, str) else name[0])


def what_runs(model: torch.nn.Module) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The module to run, and sentences about the parts that do not run.

    That is the model itself, or the language model inside a model that has no ``forward`` (Qwen-Omni's thinker).
    """
    if type(model).forward is not torch.nn.Module.forward:
        return model, ()
    parts = dict(model.named_children())
    name = next((name for name, part in parts.items() if getattr(part, "get_output_embeddings", lambda: None)()), "")
    rest = tuple(f"{other}: {name} alone was traced, which runs by itself" for other in parts if name and other != name)
    return parts.get(name, model), rest


def output(result: Any) -> torch.Tensor:
    """The tensor from which a loss is computed: logits, or the last hidden states."""
    if isinstance(result, torch.Tensor):
        return result
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if isinstance(getattr(result, name, None), torch.Tensor):
            return getattr(result, name)
    if isinstance(result, (tuple, list)):
        return result[0]
    return next(value for value in result.values() if isinstance(value, torch.Tensor) and value.requires_grad)
