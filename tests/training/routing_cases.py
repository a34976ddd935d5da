"""What test_routing.py runs on megatron-core: a small model of experts and what differs from it."""

from __future__ import annotations

from typing import Any

LENGTH, MICRO_BATCHES = 32, 2
MODEL: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48, "vocab_size": 64, "seq_length": LENGTH,
    "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24, "make_vocab_size_divisible_by": 1,
    "gated_linear_unit": True, "moe_router_load_balancing_type": "none",
}  # fmt: skip
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
DROP, PAD = {"moe_expert_capacity_factor": 0.75}, {"moe_expert_capacity_factor": 0.5, "moe_pad_expert_input_to_capacity": True}
ALLGATHER = {"moe_token_dispatcher_type": "allgather"}
CASES: dict[str, dict[str, Any]] = {
    "dropless": {},
    "dropless allgather": ALLGATHER,
    "drop": DROP,
    "drop allgather": DROP | ALLGATHER,
    "drop position": DROP | {"moe_token_drop_policy": "position"},
    "drop nothing": {"moe_expert_capacity_factor": 2.0},
    "pad": PAD,
    "drop half": {"moe_expert_capacity_factor": 0.5},
    "pad more": PAD | {"moe_expert_capacity_factor": 2.0},
    "skew": {"skew": True},
    "skew drop": DROP | {"skew": True},
    "skew pad": PAD | {"skew": True},
    "shared": DROP | {"moe_shared_expert_intermediate_size": 40},
    "mtp": DROP | {"mtp_num_layers": 1},
    "dense first": DROP | {"moe_layer_freq": [0, 1]},
    "sigmoid": DROP | {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
    "aux loss": DROP | {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 0.01},
    "recompute": DROP | FULL,
    "recompute pad": PAD | FULL,
    "recompute experts": DROP | {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
}
