"""What the trainings in worker.py are: models, parallel layouts, and which of them meet. Plain data."""

from __future__ import annotations

from typing import Any

STEPS = 3
FORK = 1
"""The step whose checkpoint all layouts continue from."""

MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "moe_aux_loss_coeff": 0.01,
            "moe_shared_expert_intermediate_size": 32, "moe_layer_freq": [0, 1, 1, 1]},
    "mla": {"multi_latent_attention": True, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_head_dim": 16, "v_head_dim": 12,
            "qk_pos_emb_head_dim": 8, "qk_layernorm": True},
    "mtp": {"mtp_num_layers": 1},
    "window": {"window_size": 9, "window_attn_skip_freq": 2},
    "tied": {"share_embeddings_and_output_weights": True, "normalization": "LayerNorm", "qk_layernorm": True,
             "add_bias_linear": True, "gated_linear_unit": False, "activation_func": "gelu"},
}  # fmt: skip

LAYOUTS: dict[str, list[str]] = {
    "one": [],
    "dp2": [],
    "tp2": ["parallel.tensor_model_parallel_size=2"],
    "tp2sp": ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"],
    "pp2": ["parallel.pipeline_model_parallel_size=2"],
    "pp2vpp2": ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"],
    "cp2": ["parallel.context_parallel_size=2"],
    "ep2": ["parallel.expert_model_parallel_size=2"],
    "tp2pp2": ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"],
    "dp2tp2": ["parallel.tensor_model_parallel_size=2"],
    "dp2pp2vpp2": ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"],
    "tp4": ["parallel.tensor_model_parallel_size=4"],
    "cp2tp2sp": [
        "parallel.context_parallel_size=2",
        "parallel.tensor_model_parallel_size=2",
        "parallel.sequence_parallel=true",
    ],
    "tp2ep2": [
        "parallel.tensor_model_parallel_size=2",
        "parallel.sequence_parallel=true",
        "parallel.expert_model_parallel_size=2",
        "parallel.expert_tensor_parallel_size=1",
    ],
    "pp2ep2": ["parallel.pipeline_model_parallel_size=2", "parallel.expert_model_parallel_size=2"],
}

REFERENCES = ("dense/padded", "dense/packed", "dense/fixed", "moe/padded", "moe/packed", "mla/padded", "mla/packed", "mtp/packed",
              "mtp/padded", "window/packed", "window/padded", "tied/padded")  # fmt: skip

ON_TWO_RANKS = (
    "dense/packed/dp2", "dense/padded/tp2", "dense/packed/tp2sp", "dense/fixed/pp2vpp2", "dense/padded/cp2", "moe/padded/ep2",
    "mla/packed/cp2", "mtp/padded/pp2", "window/packed/tp2", "tied/padded/pp2",
)  # fmt: skip
#: The same models on further layouts.
MORE_ON_TWO_RANKS = (
    "dense/padded/dp2", "dense/padded/tp2sp", "dense/padded/pp2", "dense/packed/pp2", "dense/padded/pp2vpp2",
    "dense/packed/pp2vpp2", "dense/packed/cp2", "dense/fixed/dp2", "dense/fixed/tp2sp", "moe/padded/dp2", "moe/padded/pp2",
    "moe/packed/tp2sp", "mla/padded/tp2", "mla/padded/tp2sp", "mla/packed/pp2", "mtp/packed/tp2", "mtp/padded/tp2sp",
    "window/padded/cp2", "window/padded/pp2vpp2", "tied/padded/tp2sp",
)  # fmt: skip

ON_FOUR_RANKS = (
    "dense/padded/tp2pp2", "dense/packed/tp2pp2", "dense/padded/dp2tp2", "dense/packed/dp2pp2vpp2",
    "dense/packed/cp2tp2sp", "moe/padded/tp2ep2", "moe/padded/pp2ep2", "mla/padded/tp4",
)  # fmt: skip
