"""Models whose saved tensors are measured: megatron-core's own layers, b sequences each. Plain data."""

from __future__ import annotations

from typing import Any

_BASE = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 160, "num_attention_heads": 4, "num_query_groups": 2,
    "gated_linear_unit": True, "vocab_size": 512, "seq_length": 24, "bf16": True, "transformer_impl": "local",
}  # fmt: skip
_GELU = {"gated_linear_unit": False, "activation_func": "gelu", "normalization": "LayerNorm", "add_bias_linear": True,
         "qk_layernorm": True, "share_embeddings_and_output_weights": True}  # fmt: skip
_MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "moe_layer_freq": [0, 1]}
_LLAMA3_8B = _BASE | {"hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
                      "vocab_size": 128256, "seq_length": 8192}  # fmt: skip


def _again(*modules: str) -> dict[str, Any]:
    return {"recompute_granularity": "selective", "recompute_modules": list(modules)}


def _whole(method: str, layers: int) -> dict[str, Any]:
    return {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": layers}


_META = {
    "gqa": _BASE,
    "mha": _BASE | {"num_query_groups": 4},
    "gelu": _BASE | _GELU,
    "fp32": _BASE | {"bf16": False},
    "mtp": _BASE | {"mtp_num_layers": 1},
    "llama3-8b widths": _LLAMA3_8B,
}
# Experts read how many tokens they have, and recomputation restores random numbers: neither runs without memory.
_CPU = {
    "moe": _BASE | _MOE,
    "shared experts": _BASE | _MOE | {"moe_shared_expert_intermediate_size": 32},
    "core_attn": _BASE | _again("core_attn"),
    "mlp": _BASE | _again("mlp"),
    "moe again": _BASE | _MOE | _again("moe"),
    "uniform": _BASE | _whole("uniform", 1),
    "uniform by two": _BASE | {"num_layers": 4} | _whole("uniform", 2),
    "block": _BASE | _whole("block", 1),
}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": model, "sequences": 2, "device": "meta"} for name, model in _META.items()},
    **{name: {"model": model, "sequences": 2, "device": "cpu"} for name, model in _CPU.items()},
}
