"""From MaxText's configuration names to ours; for comparing with MaxText's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridge.flops.shapes import ConfigError, ModelShape

Options = dict[str, Any]

#: MaxText's field -> ours, where only the name differs.
_NAMES = {
    "num_decoder_layers": "num_layers",
    "emb_dim": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "num_kv_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "mlp_dim": "ffn_hidden_size",
    "vocab_size": "vocab_size",
    "logits_via_embedding": "share_embeddings_and_output_weights",
    "max_target_length": "seq_length",
    "num_experts_per_tok": "moe_router_topk",
    "moe_mlp_dim": "moe_ffn_hidden_size",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "v_head_dim": "v_head_dim",
    "indexer_n_heads": "dsa_indexer_n_heads",
    "indexer_head_dim": "dsa_indexer_head_dim",
    "indexer_topk": "dsa_indexer_topk",
    "global_head_dim": "global_kv_channels",
    "global_num_kv_heads": "global_num_query_groups",
    "num_kv_shared_layers": "num_kv_shared_layers",
    "use_double_wide_mlp": "use_double_wide_mlp",
    "hidden_size_per_layer_input": "hidden_size_per_layer_input",
    "gdn_conv_kernel_dim": "linear_conv_kernel_dim",
    "gdn_key_head_dim": "linear_key_head_dim",
    "gdn_value_head_dim": "linear_value_head_dim",
    "gdn_num_key_heads": "linear_num_key_heads",
    "gdn_num_value_heads": "linear_num_value_heads",
    "freeze_vision_encoder_params": "freeze_vision_model",
}


def from_maxtext(config: Mapping[str, Any]) -> ModelShape:
    """Read a MaxText model configuration.

    Args:
        config: MaxText's fields: ``decoder_block``, ``emb_dim``, ``num_query_heads`` and so on.  The vision tower is read
            only with ``use_multimodal``, as in MaxText.

    Raises:
        ConfigError: a ``decoder_block`` that is not known.
    """
    block = config.get("decoder_block", "llama2")
    if block not in _BLOCKS:
        raise ConfigError(f"decoder_block={block!r} is not known; known are {', '.join(sorted(_BLOCKS))}")
    options: Options = {ours: config[name] for name, ours in _NAMES.items() if config.get(name)}
    options["gated_linear_unit"] = len(config.get("mlp_activations", ("silu", "linear"))) == 2
    options["should_pad_vocab"] = False
    options |= _experts(config)
    options |= _BLOCKS[block](config)
    if config.get("use_multimodal"):
        options["vision_config"] = _vision(config)
    return ModelShape(**options)


def _experts(config: Mapping[str, Any]) -> Options:
    """Any num_experts above 1 is a mixture; the first layers may be dense, shared experts are as wide as routed ones."""
    experts = config.get("num_experts", 1)
    if experts <= 1:
        return {"num_moe_experts": None, "moe_router_topk": 2}
    layers, dense = config["num_decoder_layers"], config.get("first_num_dense_layers", 0)
    return {
        "num_moe_experts": experts,
        "moe_layer_freq": [int(i >= dense) for i in range(layers)],
        "moe_shared_expert_intermediate_size": config.get("shared_experts", 0) * config["moe_mlp_dim"] or None,
    }


def _plain(config: Mapping[str, Any]) -> Options:
    return {}


def _deepseek(config: Mapping[str, Any]) -> Options:
    sparse = {"experimental_attention_variant": "dsa"} if config.get("use_indexer") else {}
    return {"multi_latent_attention": True, **sparse}


def _windowed(every: int | None) -> Callable[[Mapping[str, Any]], Options]:
    """Local layers with a sliding window, every Nth one global."""

    def options(config: Mapping[str, Any]) -> Options:
        return {"window_size": config["sliding_window_size"], "window_attn_skip_freq": config.get("global_layer_every", every)}

    return options


def _gemma2(config: Mapping[str, Any]) -> Options:
    # One decoder layer of MaxText's Gemma 2 is a pair: one local, one global.
    return {"num_layers": 2 * config["num_decoder_layers"], **_windowed(2)(config)}


def _gemma4(config: Mapping[str, Any]) -> Options:
    shared = config.get("shared_experts", 0) * config["mlp_dim"] if config.get("num_experts", 1) > 1 else 0
    return {
        **_windowed(6)(config),
        "global_attention_k_eq_v": bool(config.get("share_kv_projections")),
        # The shared expert has the dense width.
        "moe_shared_expert_intermediate_size": shared or None,
    }


def _llama4(config: Mapping[str, Any]) -> Options:
    step, layers = config.get("interleave_moe_layer_step", 1), config["num_decoder_layers"]
    return {
        "attention_chunk_size": config["chunk_attn_window_size"],
        "no_rope_freq": config["nope_layer_interval"],
        "moe_layer_freq": [int(i % step == 0) for i in range(1, layers + 1)],
    }


def _qwen3_next(config: Mapping[str, Any]) -> Options:
    return {
        "experimental_attention_variant": "gdn",
        "linear_attention_freq": config["inhomogeneous_layer_cycle_interval"],
        "attention_output_gate": True,
    }


_BLOCKS: dict[str, Callable[[Mapping[str, Any]], Options]] = {
    "llama2": _plain,
    "mistral": _plain,
    "mixtral": _plain,
    "qwen2": _plain,
    "qwen3": _plain,
    "qwen3_moe": _plain,
    "gemma": _plain,
    "deepseek": _deepseek,
    "gpt_oss": _windowed(2),
    "gemma2": _gemma2,
    "gemma3": _windowed(6),
    "gemma4": _gemma4,
    "gemma4_small": _gemma4,
    "llama4": _llama4,
    "qwen3_next": _qwen3_next,
    "qwen3_5": _qwen3_next,
}


def _vision(config: Mapping[str, Any]) -> Options:
    """The vision tower of Gemma 3 (whose sizes MaxText fixes in code) or of Llama 4, for images of the configured size."""
    if fixed := config.get("vit_fixed"):
        return {
            "depth": fixed["layers"],
            "hidden_size": fixed["hidden"],
            "intermediate_size": fixed["intermediate"],
            "patch_size": fixed["patch_size"],
            "temporal_patch_size": 1,
            "in_channels": config["num_channels_for_vit"],
            "spatial_merge_size": fixed["pooling_window"],
            "projector_type": "pooled_linear",
        }
    return {
        "depth": config["num_hidden_layers_for_vit"],
        "hidden_size": config["hidden_size_for_vit"],
        "intermediate_size": config["intermediate_size_for_vit"],
        "patch_size": config["patch_size_for_vit"],
        "temporal_patch_size": 1,
        "in_channels": config["num_channels_for_vit"],
        "spatial_merge_size": round(1 / config["pixel_shuffle_ratio_for_vit"]),
        "class_token": True,
        "projector_type": "pixel_shuffle",
        "projector_input_dim": config["projector_input_dim_for_vit"],
        "projector_output_dim": config["projector_output_dim_for_vit"],
    }


def patches_per_image(config: Mapping[str, Any]) -> int:
    """Patches of one image of the configured size."""
    size = config.get("image_size_for_vit") or config["tile_size_for_vit"]
    patch = (config.get("vit_fixed") or {}).get("patch_size") or config["patch_size_for_vit"]
    return (size // patch) ** 2
