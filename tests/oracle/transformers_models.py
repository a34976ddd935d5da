"""Tiny models that transformers builds from a drawn configuration, without memory (meta device), and how they run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Mistral4ForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from oracle.counter import count


def draw(model_type: str, seed: int) -> PreTrainedConfig:
    """A configuration of this family with small, uneven sizes; the same for the same seed."""
    kind, random = CONFIG_MAPPING[model_type], Random(f"{model_type} {seed}")
    known = {field.name for field in fields(kind)} | set(kind.attribute_map) | set(_NO_FIELDS.get(model_type, ()))
    sizes = {name: value for name, value in _sizes(random).items() if name in known}
    if "kv_lora_rank" in known:
        # Here head_dim is the part of a head that RoPE turns, and every head has keys of its own.
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if model_type.startswith("lfm2"):
        sizes["layer_types"] = random.choices(["conv", "full_attention"], k=sizes["num_hidden_layers"])
    if model_type == "mimo_v2_flash":
        # Layers with a window have twice the key heads.
        sizes["num_attention_heads"] *= 2
        layers = sizes["num_hidden_layers"]
        sizes["layer_types"] = random.choice([None, random.choices(["sliding_attention", "full_attention"], k=layers)])
        sizes["mlp_layer_types"] = random.choice([None, random.choices(["sparse", "dense"], k=layers)])
    if model_type == "jamba":
        for name in ("attn", "expert"):
            sizes[f"{name}_layer_period"] = period = random.randint(1, 3)
            sizes[f"{name}_layer_offset"] = random.randrange(period)
    if model_type in ("phi", "stablelm"):
        sizes["hidden_size"] *= 4  # a half or a quarter of each head is turned
    if model_type == "internlm3":
        sizes |= dict.fromkeys(("attention_bias", "qkv_bias", "bias"), sizes["mlp_bias"])
    if model_type == "granitemoehybrid":
        mixers = random.choices(["linear_attention", "full_attention"], k=sizes["num_hidden_layers"])
        sizes |= {"layers_block_type": mixers, "position_embedding_type": random.choice([None, "rope"])}
    if model_type == "falcon":
        # What transformers runs: ALiBi beside whole heads, two norms beside the attention.
        sizes["alibi"] = sizes["alibi"] and not sizes["new_decoder_architecture"] and not sizes["multi_query"]
        sizes["parallel_attn"] = sizes["parallel_attn"] or sizes["new_decoder_architecture"]
        sizes["num_kv_heads"] = sizes["num_kv_heads"] if sizes["new_decoder_architecture"] else None
        sizes["num_ln_in_parallel_attn"] = random.choice([None, 1, 2]) if sizes["new_decoder_architecture"] else None
    if "index_topk" in known:
        sizes["q_lora_rank"] = 11  # the indexer's queries come from the compressed ones
    if "indexer_types" in known:
        # The first layer has nobody's choice of keys to take.
        sizes["indexer_types"] = ["full", *random.choices(["full", "shared"], k=sizes["num_hidden_layers"] - 1)]
    if model_type == "gemma4_text" and seed % 2:
        # Layers of both kinds share the keys and values of earlier ones (E2B, E4B).
        kinds = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"] * random.randint(0, 2) + ["full_attention"]
        sizes |= {
            "num_hidden_layers": len(kinds),
            "layer_types": kinds,
            "num_kv_shared_layers": random.randint(1, len(kinds) - 2),
        }
        sizes |= {"use_double_wide_mlp": random.random() < 0.5, "hidden_size_per_layer_input": random.randint(3, 9)}
    for name in _FIXED.get(model_type, ()):
        sizes.pop(name, None)
    return kind(**sizes)


#: Arguments that a class takes and keeps by another name.
_NO_FIELDS = {"gemma4_text": ("global_head_dim", "num_global_key_value_heads")}
#: Fields that all models of a family agree on, and whose other values we report as not counted.
_FIXED = {
    "bamba": ("mamba_d_conv", "mamba_expand", "mamba_conv_bias", "mamba_proj_bias"),
    "deepseek_v2": ("attention_bias", "mlp_bias"),
    "deepseek_v3": ("attention_bias",),
    "deepseek_v32": ("attention_bias",),
    "falcon_h1": ("mamba_d_conv", "mamba_expand", "mamba_conv_bias", "mamba_proj_bias"),
    "granitemoehybrid": ("mamba_d_conv", "mamba_expand", "mamba_conv_bias", "mamba_proj_bias"),
    "glm_moe_dsa": ("attention_bias", "mlp_bias"),
    "ernie4_5_moe": ("use_bias",),
    "glm4_moe_lite": ("attention_bias",),
    "hy_v3": ("mlp_bias",),
    "kimi_linear": ("attention_bias",),
    "minicpm3": ("attention_bias", "mlp_bias"),
    "mistral4": ("attention_bias",),
    "nemotron_h": ("attention_bias", "mlp_bias", "sliding_window", "use_bias"),
    "youtu": ("attention_bias",),
}


def _sizes(random: Random) -> dict[str, Any]:
    """Values for the fields that one family or another has."""
    groups, experts, layers = random.randint(1, 3), random.randint(3, 6), random.randint(2, 4)
    heads = groups * random.randint(1, 3)
    return {
        "vocab_size": random.randint(50, 200),
        "hidden_size": 2 * heads * random.randint(2, 8),
        "intermediate_size": random.randint(10, 70),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 2 * random.randint(2, 9),
        "sliding_window": random.randint(2, 9),
        "use_sliding_window": random.random() < 0.5,
        "max_window_layers": random.randint(0, layers),
        "tie_word_embeddings": random.random() < 0.5,
        "attention_bias": random.random() < 0.5,
        "qkv_bias": random.random() < 0.5,
        "use_qk_norm": random.random() < 0.5,
        "pad_token_id": 0,
        # experts
        "num_experts": experts,
        "num_local_experts": experts,
        "n_routed_experts": experts,
        "num_experts_per_tok": random.randint(1, experts),
        "moe_intermediate_size": random.randint(5, 40),
        "shared_expert_intermediate_size": random.randint(5, 40),
        "n_shared_experts": random.randint(1, 2),
        "first_k_dense_replace": random.randint(0, 2),
        "decoder_sparse_step": random.randint(1, 2),
        "mlp_only_layers": [random.randrange(layers)],
        "n_group": 1,
        "topk_group": 1,
        # latent attention
        "q_lora_rank": random.choice([None, random.randint(3, 20)]),
        "kv_lora_rank": 2 * random.randint(2, 10),
        "qk_nope_head_dim": 2 * random.randint(1, 6),
        "qk_rope_head_dim": 2 * random.randint(1, 6),
        "v_head_dim": random.randint(3, 12),
        "index_n_heads": random.randint(1, 3),
        "index_head_dim": 2 * random.randint(6, 10),
        "index_topk": random.randint(2, 5),
        # Llama 4
        "intermediate_size_mlp": random.randint(10, 70),
        "attention_chunk_size": random.randint(2, 9),
        "moe_layers": sorted(random.sample(range(layers), random.randint(0, layers))),
        "top_k_experts": random.randint(1, experts),
        "enable_moe_block": random.random() < 0.5,
        # Gemma 4
        "num_global_key_value_heads": 1,
        "global_head_dim": 2 * random.randint(2, 9),
        "attention_k_eq_v": random.random() < 0.5,
        "hidden_size_per_layer_input": random.choice([0, random.randint(3, 9)]),
        "vocab_size_per_layer_input": random.randint(20, 60),
        # linear attention and Mamba-2
        "linear_key_head_dim": random.randint(3, 9),
        "linear_value_head_dim": random.randint(3, 9),
        "linear_num_key_heads": groups,
        "linear_num_value_heads": heads,
        "layers_block_type": random.choices(["linear_attention", "full_attention", "moe", "mlp"], k=5),
        "ssm_state_size": random.randint(3, 9),
        "mamba_num_heads": 2 * groups,
        "mamba_head_dim": random.randint(3, 9),
        "moe_shared_expert_intermediate_size": random.randint(5, 40),
        "n_groups": groups,
        "mamba_d_ssm": 12 * groups,
        "mamba_n_heads": 2 * groups,
        "mamba_n_groups": groups,
        "mamba_d_state": random.randint(3, 9),
        "mamba_rms_norm": random.random() < 0.5,
        "chunk_size": random.randint(3, 9),
        "mlp_bias": random.random() < 0.5,
        # biases and norms by names of their own
        "use_bias": random.random() < 0.5,
        "use_qkv_bias": random.random() < 0.5,
        "enable_bias": random.random() < 0.5,
        "bias": random.random() < 0.5,
        "qk_layernorm": random.random() < 0.5,
        "use_post_norm": random.random() < 0.5,
        "use_parallel_residual": random.random() < 0.5,
        "do_layer_norm_before": random.random() < 0.5,
        # ERNIE 4.5, Hunyuan 3, Granite
        "moe_num_experts": experts,
        "moe_k": random.randint(1, experts),
        "moe_num_shared_experts": random.randint(0, 2),
        "moe_layer_start_index": random.randint(0, 2),
        "moe_layer_end_index": random.choice([-1, layers - 1]),
        "moe_layer_interval": random.randint(1, 2),
        "num_shared_experts": random.randint(1, 2),
        "shared_intermediate_size": random.choice([0, random.randint(5, 40)]),
        # Falcon, GPT-2, OPT
        "new_decoder_architecture": random.random() < 0.5,
        "multi_query": random.random() < 0.5,
        "parallel_attn": random.random() < 0.5,
        "alibi": random.random() < 0.5,
        "num_kv_heads": groups,
        "ffn_hidden_size": random.randint(10, 70),
        "n_inner": random.choice([None, random.randint(10, 70)]),
        "ffn_dim": random.randint(10, 70),
        # Phi-3.5-MoE, Bamba, Kimi Linear
        "lm_head_bias": random.random() < 0.5,
        # Jamba, LFM2, OPT
        "mamba_dt_rank": random.choice(["auto", random.randint(1, 9)]),
        "mamba_d_conv": random.randint(2, 5),
        "mamba_expand": random.randint(1, 3),
        "mamba_conv_bias": random.random() < 0.5,
        "mamba_proj_bias": random.random() < 0.5,
        "conv_bias": random.random() < 0.5,
        "conv_L_cache": random.randint(2, 5),
        "block_multiple_of": random.randint(1, 9),
        "block_ffn_dim_multiplier": random.choice([1.0, 0.7]),
        "block_auto_adjust_ff_dim": random.random() < 0.5,
        "num_dense_layers": random.randint(0, layers),
        "layer_norm_elementwise_affine": random.random() < 0.5,
        "attn_layer_indices": sorted(random.sample(range(layers), random.randint(0, layers))),
        "linear_num_heads": groups,
        "linear_head_dim": random.randint(3, 9),
    }


#: Models that transformers' choice by configuration leaves out.
_NOT_AUTOMATIC = {"mistral4": Mistral4ForCausalLM}


def build(config: PreTrainedConfig, *, attention: str = "eager", device: str = "meta") -> PreTrainedModel:
    """The model, with unfused attention and the experts as batched matmuls; without memory on the meta device."""
    config._experts_implementation = "batched_mm"
    with torch.device(device):
        if config.model_type in _NOT_AUTOMATIC:
            return _NOT_AUTOMATIC[config.model_type]._from_config(config, attn_implementation=attention)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def forward(model: torch.nn.Module, batch_size: int, length: int) -> int:
    """FLOPs of one forward pass over ``batch_size`` sequences of ``length`` tokens."""
    return count(lambda: run(model, batch_size, length))


def training(model: torch.nn.Module, batch_size: int, length: int) -> int:
    """FLOPs of one forward and one backward pass."""
    return count(lambda: run(model, batch_size, length).sum().backward())


#: Models that count positions from the mask, and take no finished one.
_PLAIN_MASK = ("bloom", "falcon", "opt")


def run(model: torch.nn.Module, batch_size: int, length: int) -> torch.Tensor:
    """The logits of a batch."""
    with next(model.parameters()).device:
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        # A finished mask: making one would look at values, which the meta device does not have.
        mask = torch.zeros(batch_size, 1, length, length)
        if model.config.model_type in _PLAIN_MASK:
            mask = torch.ones(batch_size, length, dtype=torch.long)
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


# ---- names ---------------------------------------------------------------------------------------------------------

_WHOLE = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm": "decoder.final_layernorm",
    "lm_head": "output_layer",
}
#: Inside a layer: transformers' name -> the plan's name, or names where the plan has several for it.
_IN_LAYER: dict[str, str | tuple[str, ...]] = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "pre_feedforward_layernorm": "pre_mlp_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
    "self_attn.q_proj": ("self_attention.linear_q", "self_attention.linear_q_proj"),
    "self_attn.k_proj": "self_attention.linear_k",
    "self_attn.v_proj": "self_attention.linear_v",
    "self_attn.qkv_proj": "self_attention.linear_qkv",
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_norm": "self_attention.q_layernorm",
    "self_attn.k_norm": "self_attention.k_layernorm",
    "self_attn.sinks": "self_attention.core_attention.softmax_offset",
    "self_attn.q_a_proj": "self_attention.linear_q_down_proj",
    "self_attn.q_a_layernorm": "self_attention.q_layernorm",
    "self_attn.q_b_proj": "self_attention.linear_q_up_proj",
    "self_attn.kv_a_proj_with_mqa": "self_attention.linear_kv_down_proj",
    "self_attn.kv_a_layernorm": "self_attention.kv_layernorm",
    "self_attn.kv_b_proj": "self_attention.linear_kv_up_proj",
    "mlp.gate_proj": "mlp.linear_fc1_gate",
    "mlp.up_proj": "mlp.linear_fc1_up",
    "mlp.gate_up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
    "mlp.gate": "mlp.router",
    "mlp.router": "mlp.router",
    "mlp.experts.gate_up_proj": "mlp.experts.linear_fc1",
    "mlp.experts.down_proj": "mlp.experts.linear_fc2",
    "mlp.shared_expert_gate": "mlp.shared_experts.gate_weight",
}


def modules(model: PreTrainedModel) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters of a model by the module that owns them; a bias belongs to its weight."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(re.sub(r"(\.weight|\.bias|_bias)$", "", name), []).append(parameter)
    return found


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Modules that an adapter can be put on.

    Left out: the output layer, and in models with experts everything but attention. peft applies adapters of experts to
    the weights (a product for every expert, whatever the tokens do), which is not what other frameworks' adapters cost.
    """
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]
    has_experts = hasattr(model.config, "num_experts_per_tok")
    return [name for name in names if ".self_attn." in name or not has_experts]


def paths(module: str, names: Iterable[str]) -> Iterator[str]:
    """The paths in a plan of a module of transformers; ``names`` are all modules of the model."""
    if module in _WHOLE:
        yield _WHOLE[module]
        return
    _, _, number, leaf = module.split(".", 3)
    for found in _in_layer(leaf, sandwiched=any(name.endswith("post_feedforward_layernorm") for name in names)):
        yield f"decoder.layers.{number}.{found}"


def _in_layer(leaf: str, *, sandwiched: bool) -> tuple[str, ...]:
    # The norm of this name follows the attention where there is one after the MLP as well; else it precedes the MLP.
    if leaf == "post_attention_layernorm" and sandwiched:
        return (leaf,)
    for shared in ("mlp.shared_experts.", "mlp.shared_expert."):
        if leaf.startswith(shared):
            return (f"mlp.shared_experts.{_IN_LAYER['mlp.' + leaf.removeprefix(shared)].removeprefix('mlp.')}",)
    found = _IN_LAYER[leaf]
    return (found,) if isinstance(found, str) else found


def adapter_target(target: str, config: PreTrainedConfig) -> str:
    """A target of peft (``q_proj``) by the plan's name in models of this configuration."""
    found = next(found for name, found in _IN_LAYER.items() if name.rsplit(".", 1)[-1] == target)
    if not isinstance(found, str):
        plain, latent = found
        found = latent if hasattr(config, "kv_lora_rank") else plain
    return found.rsplit(".", 1)[-1]
