"""Which models are built on which layouts."""

from __future__ import annotations

from typing import Any

from bridge.config import Config, ModelConfig, with_overrides
from bridge.config.schema import DataConfig, TrainConfig

SEQUENCE = 32

_BASE = {
    "num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 80, "num_attention_heads": 4, "num_query_groups": 2,
    "gated_linear_unit": True, "vocab_size": 500, "seq_length": SEQUENCE, "make_vocab_size_divisible_by": 8,
}  # fmt: skip
_MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "moe_layer_freq": [0, 1, 1, 1]}
_MLA = {"multi_latent_attention": True, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_head_dim": 16, "v_head_dim": 12,
        "qk_pos_emb_head_dim": 8, "qk_layernorm": True}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "dense": _BASE,
    "one_group": _BASE | {"num_query_groups": 1},
    "odd": _BASE | {"hidden_size": 40, "ffn_hidden_size": 84, "num_attention_heads": 4, "num_query_groups": 4, "vocab_size": 333},
    "tied": _BASE | {"share_embeddings_and_output_weights": True, "normalization": "LayerNorm", "qk_layernorm": True,
                     "add_bias_linear": True, "gated_linear_unit": False, "activation_func": "gelu"},
    "mla": _BASE | _MLA,
    "mtp": _BASE | {"mtp_num_layers": 1},
    "tied_mtp": _BASE | {"mtp_num_layers": 1, "share_embeddings_and_output_weights": True},
    "moe": _BASE | _MOE | {"moe_shared_expert_intermediate_size": 32},
    "moe_mla": _BASE | _MLA | _MOE | {"moe_shared_expert_intermediate_size": 32, "moe_shared_expert_gate": True},
}  # fmt: skip

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "tp4": {"tensor_model_parallel_size": 4},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp4": {"pipeline_model_parallel_size": 4},
    "pp2vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "tp2pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "cp2tp2sp": {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    "ep2": {"expert_model_parallel_size": 2},
    "ep4": {"expert_model_parallel_size": 4},
    "tp2ep2": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_model_parallel_size": 2,
               "expert_tensor_parallel_size": 1},
    "pp2ep2": {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
}  # fmt: skip

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {"bf16": False, "use_distributed_optimizer": False},
    "plain_bf16": {"bf16": True, "use_distributed_optimizer": False},
    "split": {"bf16": False, "use_distributed_optimizer": True},
    "split_bf16": {"bf16": True, "use_distributed_optimizer": True},
    "overlap": {"bf16": True, "use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}

#: model/layout/optimizer; every model, every optimizer, every layout of two ranks, and what makes them hard together.
_TWO = """
dense/dp/split_bf16 dense/tp2/plain dense/tp2sp/split_bf16 dense/pp2vpp2/overlap dense/cp2/split_bf16 one_group/tp2sp/split_bf16
odd/dp/split_bf16 odd/tp2/plain_bf16 odd/pp2/split tied/pp2/split_bf16 tied/tp2sp/plain mla/tp2sp/split_bf16 mtp/pp2/split_bf16
tied_mtp/pp2/split mtp/dp/overlap moe/dp/split_bf16 moe/ep2/split_bf16 moe_mla/ep2/plain_bf16
"""
ON_TWO_RANKS = tuple(_TWO.split())

_DENSE = ("tp4", "pp4", "pp2vpp2", "cp2", "tp2pp2", "cp2tp2sp")
_EXPERTS = ("ep2", "ep4", "tp2ep2", "pp2ep2")
ON_FOUR_RANKS = (
    *(f"{model}/{layout}/split_bf16" for model in ("odd", "tied", "mla", "mtp") for layout in _DENSE),
    *(f"dense/{layout}/overlap" for layout in ("dp", *_DENSE)),
    *(
        f"{model}/{layout}/{optimizer}"
        for model in ("moe", "moe_mla")
        for layout in _EXPERTS
        for optimizer in ("plain", "overlap")
    ),
)


def config(case: dict[str, Any]) -> Config:
    """A case as the worker builds it and as it is planned."""
    base = Config(
        name="built",
        model=ModelConfig(**case["model"]),
        train=TrainConfig(train_iters=1, global_batch_size=case["global_batch_size"], micro_batch_size=case["micro_batch_size"]),
        data=DataConfig(batching="fixed"),
    )
    return with_overrides(base, case["options"])


def case(name: str, ranks: int, micro_batches: int = 4, micro_batch_size: int = 2) -> dict[str, Any]:
    """What a name says, for the worker and for the plan."""
    model, layout, optimizer = name.split("/")
    parallel = LAYOUTS[layout]
    cut = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    replicas = ranks
    for size in cut:
        replicas //= parallel.get(size, 1)
    chosen = dict(OPTIMIZERS[optimizer])
    bf16 = chosen.pop("bf16")
    options = [f"parallel.{key}={str(value).lower()}" for key, value in parallel.items()]
    options += [f"optimizer.{key}={str(value).lower()}" for key, value in chosen.items()]
    return {
        "model": MODELS[model] | {"bf16": bf16, "transformer_impl": "local"},
        "options": options,
        "micro_batch_size": micro_batch_size,
        "global_batch_size": micro_batches * micro_batch_size * replicas,
    }
