"""The one door of the counting floor: whatever describes a model is read here, once.

Any object will do: our own dataclass, an OmegaConf node, a mapping, an ``argparse`` namespace or a bare object with attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bridge.flops.shapes import AudioShape, ConfigError, DiffusionShape, ModelShape, VisionShape

_ALIASES = {
    "hybrid_layer_pattern": ("hybrid_override_pattern",),
    # Megatron-LM's arguments.
    "gated_linear_unit": ("swiglu",),
    "num_moe_experts": ("num_experts",),
    "vocab_size": ("padded_vocab_size",),
}
_VISION_ALIASES = {
    "depth": ("num_hidden_layers", "num_layers"),
    "num_heads": ("num_attention_heads",),
    "hidden_size": ("embed_dim",),
    "in_channels": ("in_chans", "num_channels"),
    "projector_output_dim": ("vision_output_dim",),
    "spatial_merge_size": ("merge_size",),
}
#: Parts that models of other families have: named, not priced.
_NOT_COUNTED = {
    "heterogeneous_block_specs": "blocks that differ from layer to layer",
}
PROJECTOR_TYPES = ("none", "merger", "pooled_linear", "mlp", "pixel_shuffle")
_VARIANTS = ("", "gdn", "gdn2", "dsa", "dsv4_hybrid")


def get(source: Any, name: str) -> Any:
    """A field of a mapping or of an object; None where it is missing."""
    if isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)


def _fill(kind: type, source: Any, aliases: Mapping[str, tuple[str, ...]]) -> Any:
    """A dataclass of type ``kind`` from the fields ``source`` has; None means the default."""
    values = {}
    for item in dataclasses.fields(kind):
        for name in (item.name, *aliases.get(item.name, ())):
            value = get(source, name)
            if value is not None:
                values[item.name] = value
                break
    return kind(**values)


def model_of(cfg: Any) -> Any:
    """``cfg.model`` where there is one, else ``cfg`` itself."""
    model = get(cfg, "model")
    return cfg if model is None else model


def read(cfg: Any) -> ModelShape:
    """Read and check a configuration.

    Args:
        cfg: anything with ``.model``, a model config, or a mapping of its fields.

    Raises:
        ConfigError: a required field is missing, or a value cannot be what it is.
    """
    model = model_of(cfg)
    shape: ModelShape = _fill(ModelShape, model, _ALIASES)
    _read_megatron_lm(shape, model)
    # A TransformerConfig of megatron-core's knows neither: they are arguments of the model built from it.
    for name in ("vocab_size", "seq_length"):
        if getattr(shape, name) is None:
            setattr(shape, name, get(cfg, name))
    if get(model, "tensor_model_parallel_size") is None:
        size = get(get(cfg, "parallel"), "tensor_model_parallel_size")
        shape.tensor_model_parallel_size = 1 if size is None else size
    if shape.vision_config is None:
        shape.vision_config = get(get(model, "thinker_config"), "vision_config")
    if shape.diffusion_config is None and not shape.is_tower_alone:
        _check(shape)
    return shape


def _read_megatron_lm(shape: ModelShape, args: Any) -> None:
    """Megatron-LM's ``args`` say some things the other way round."""
    if get(args, "group_query_attention") is False:
        shape.num_query_groups = None
    if get(args, "untie_embeddings_and_output_weights") is not None:
        shape.share_embeddings_and_output_weights = not get(args, "untie_embeddings_and_output_weights")
    if get(args, "swiglu"):
        shape.gated_linear_unit = True


def read_vision(cfg: Any) -> VisionShape | None:
    """The vision tower of a configuration; None without one.

    ``vision_config`` may sit on the model or under ``model.thinker_config``, ``deepstack_visual_indexes`` on any of the three.
    """
    model = model_of(cfg)
    thinker = get(model, "thinker_config")
    source = get(model, "vision_config")
    if source is None:
        source = get(thinker, "vision_config")
    if source is None:
        return None
    vision: VisionShape = _fill(VisionShape, source, _VISION_ALIASES)
    for place in (source, model, thinker):
        indexes = get(place, "deepstack_visual_indexes")
        if indexes is not None:
            vision.deepstack_visual_indexes = tuple(indexes)
            break
    if vision.out_hidden_size is None:
        vision.out_hidden_size = get(model, "hidden_size") or vision.hidden_size
    for name in ("depth", "hidden_size"):
        _positive(f"vision_config.{name}", getattr(vision, name), required=True)
    for name in (
        "mlp_size",
        "spatial_merge_size",
        "patch_size",
        "temporal_patch_size",
        "in_channels",
        "out_hidden_size",
    ):
        _positive(f"vision_config.{name}", getattr(vision, name))
    if vision.projector_type not in PROJECTOR_TYPES:
        raise ConfigError(
            f"model.vision_config.projector_type={vision.projector_type!r} is not known; "
            f"choose one of {', '.join(PROJECTOR_TYPES)}"
        )
    return vision


def read_diffusion(cfg: Any) -> DiffusionShape | None:
    """The diffusion transformer of a configuration; None without one."""
    source = get(model_of(cfg), "diffusion_config")
    if source is None:
        return None
    shape: DiffusionShape = _fill(DiffusionShape, source, {})
    for name in ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "mlp_ratio"):
        _positive(f"diffusion_config.{name}", getattr(shape, name), required=True)
    return shape


def read_audio(cfg: Any) -> AudioShape | None:
    """The audio encoder of a configuration; None without one, or for one of another kind (see ``not_counted``)."""
    source = get(model_of(cfg), "audio_config")
    if source is None or get(source, "d_model") is None:
        return None
    audio: AudioShape = _fill(AudioShape, source, {})
    if audio.output_dim is None:
        audio.output_dim = get(model_of(cfg), "hidden_size")
    for name in ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "pooling"):
        _positive(f"audio_config.{name}", getattr(audio, name), required=True)
    return audio


def not_counted(cfg: Any) -> tuple[str, ...]:
    """What the configuration asks for and the plan cannot price, as sentences that name the field."""
    model = model_of(cfg)
    found = [f"{name}: {what} is not counted" for name, what in _NOT_COUNTED.items() if get(model, name)]
    if get(model, "audio_config") is not None and read_audio(cfg) is None:
        found.append("audio_config: an audio encoder that is not like Whisper's is not counted")
    variant = ModelShape(experimental_attention_variant=get(model, "experimental_attention_variant")).variant
    if variant not in _VARIANTS:
        found.append(f"experimental_attention_variant={variant!r}: this attention is not counted")
    declared = get(cfg, "not_counted")
    if isinstance(declared, (list, tuple)):
        found += [str(sentence) for sentence in declared]
    return tuple(found)


def _positive(name: str, value: Any, *, required: bool = False) -> None:
    if value is None:
        if required:
            raise ConfigError(f"model.{name} is missing: set it to a positive integer")
        return
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"model.{name}={value!r} must be a positive integer")


def _check(shape: ModelShape) -> None:
    required = ["hidden_size", "vocab_size"]
    required += [] if shape.hybrid_layer_pattern else ["num_layers"]
    if not (shape.is_hybrid and "*" not in (shape.hybrid_layer_pattern or "*")):
        required.append("num_attention_heads")
    for name in required:
        _positive(name, getattr(shape, name), required=True)
    for name in [
        "ffn_hidden_size",
        "num_query_groups",
        "kv_channels",
        "make_vocab_size_divisible_by",
        "tensor_model_parallel_size",
        "seq_length",
        "kv_lora_rank",
        "qk_head_dim",
        "v_head_dim",
        "num_moe_experts",
        "moe_router_topk",
        "moe_ffn_hidden_size",
        "moe_latent_size",
        "attention_chunk_size",
        "global_kv_channels",
        "global_num_query_groups",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "mamba_state_dim",
        "mamba_head_dim",
        "mamba_num_groups",
        "mamba_num_heads",
        "csa_window_size",
        "hc_mult",
    ]:
        _positive(name, getattr(shape, name))
    heads, hidden = shape.num_attention_heads, shape.hidden_size or 0
    if heads and shape.kv_channels is None and hidden % heads:
        raise ConfigError(
            f"model.num_attention_heads={shape.num_attention_heads} does not divide model.hidden_size={shape.hidden_size}: "
            "change one of them or set model.kv_channels"
        )
    if shape.num_attention_heads and shape.num_attention_heads % shape.key_value_heads and not shape.multi_latent_attention:
        raise ConfigError(
            f"model.num_query_groups={shape.num_query_groups} does not divide "
            f"model.num_attention_heads={shape.num_attention_heads}"
        )
    if shape.window_size is not None and not isinstance(shape.window_size, int):
        if isinstance(shape.window_size, str) or len(shape.window_size) != 2:
            raise ConfigError(f"model.window_size={shape.window_size!r} must be an integer or a pair (left, right)")
    if shape.layernorm_placement not in ("pre", "post", "sandwich"):
        raise ConfigError(f"model.layernorm_placement={shape.layernorm_placement!r} must be 'pre', 'post' or 'sandwich'")
    if shape.num_moe_experts and shape.moe_router_topk > shape.num_moe_experts:
        raise ConfigError(
            f"model.moe_router_topk={shape.moe_router_topk} is larger than model.num_moe_experts={shape.num_moe_experts}"
        )
