"""The names of transformers' modules in a plan, which has megatron-core's."""

from __future__ import annotations

import re

#: Linear layers that can have an adapter: transformers' name within a layer -> the plan's name.
LINEAR_LAYERS = {
    "self_attn.q_proj": "self_attention.linear_q",
    "self_attn.k_proj": "self_attention.linear_k",
    "self_attn.v_proj": "self_attention.linear_v",
    "self_attn.qkv_proj": "self_attention.linear_qkv",
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_a_proj": "self_attention.linear_q_down_proj",
    "self_attn.q_b_proj": "self_attention.linear_q_up_proj",
    "self_attn.kv_a_proj_with_mqa": "self_attention.linear_kv_down_proj",
    "self_attn.kv_b_proj": "self_attention.linear_kv_up_proj",
    "mlp.gate_proj": "mlp.linear_fc1_gate",
    "mlp.up_proj": "mlp.linear_fc1_up",
    "mlp.gate_up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
}
#: The other modules of a language model: transformers' name to the plan's, in the order in which they are replaced.
_MODULES = (
    (re.compile(r"^.*\bembed_tokens$"), "embedding.word_embeddings"),
    (re.compile(r"^.*\blm_head$"), "output_layer"),
    (re.compile(r"^(?!.*(vision|visual|audio|encoder)).*\blayers\.(\d+)\."), r"decoder.layers.\2."),
    (re.compile(r"^(?!.*(vision|visual|audio|encoder))(\w+\.)*norm$"), "decoder.final_layernorm"),
    (re.compile(r"\.post_attention_layernorm$"), ".pre_mlp_layernorm"),
    (re.compile(r"\.self_attn\.(q|k|kv)(_a)?_(?:layer)?norm$"), r".self_attention.\1_layernorm"),
    (re.compile(r"\.mlp\.gate$"), ".mlp.router"),
    (re.compile(r"\.experts\.gate_up_proj$"), ".experts.linear_fc1"),
    (re.compile(r"\.experts\.down_proj$"), ".experts.linear_fc2"),
    (re.compile(r"\.shared_experts?\.(gate|up)_proj\b"), r".shared_experts.linear_fc1_\1"),
    (re.compile(r"\.shared_experts?\.down_proj\b"), ".shared_experts.linear_fc2"),
    (re.compile(r"\.lora_A\.\w+$"), ".adapter.linear_in"),
    (re.compile(r"\.lora_B\.\w+$"), ".adapter.linear_out"),
    (re.compile(r"\.base_layer$"), ""),
    *((re.compile(rf"\.{re.escape(name)}(?=\.|$)"), f".{path}") for name, path in LINEAR_LAYERS.items()),
)


def plan_path(name: str) -> str:
    """The path in a plan of a module of transformers; an unknown name is returned as it is."""
    for theirs, ours in _MODULES:
        name = theirs.sub(ours, name)
    return name
