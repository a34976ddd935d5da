"""The published models and their reference integers (tests/data), and how facts beyond megatron-core's fields are set."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "published_models.json"
MODELS = {model["name"]: model for model in json.loads(DATA.read_text())["models"]}
CASES = [(model, case) for model in MODELS.values() for case in model.get("cases", ())]
IDS = [f"{model['name']}-{case['id']}" for model, case in CASES]


def reference(value: int | str) -> Fraction:
    """Integers, or a/b where a convention is not integral."""
    return Fraction(value)


def full_config(model: dict[str, Any]) -> dict[str, Any]:
    """The model's config with the facts that megatron-core's fields leave open."""
    config, facts = dict(model["config"]), model.get("shape_beyond_config") or {}
    config["share_embeddings_and_output_weights"] = facts.get("tie", False)
    config["add_qkv_bias"] = facts.get("qkv_bias", False)
    config["add_bias_linear"] = facts.get("mlp_bias", False)
    config["qk_layernorm"] = {None: False, "head": True, "full": "full"}[facts.get("qk_norm")]
    config["moe_shared_expert_gate"] = facts.get("shared_gate", False)
    config["hc_mult"] = facts.get("hc_mult")
    if "sinks" in facts:
        config["softmax_type"] = "learnable"
    if "position_embeddings" in facts:
        config |= {"position_embedding_type": "learned_absolute", "max_position_embeddings": facts["position_embeddings"]}
    if chunk := facts.get("chunk_attention"):
        config |= {"attention_chunk_size": chunk["size"], "no_rope_freq": chunk["every"]}
    if wide := facts.get("global_attention"):
        config |= {
            "global_kv_channels": wide["kv_channels"],
            "global_num_query_groups": wide["num_query_groups"],
            "global_attention_k_eq_v": wide["k_eq_v"],
        }
    if facts.get("vision_gated_mlp"):
        every = config["vision_config"]["depth"] // facts["vision_full_layers"]
        config["vision_config"] = config["vision_config"] | {
            "hidden_act": "silu",
            "window_size": 112,
            "fullatt_block_indexes": list(range(every - 1, config["vision_config"]["depth"], every)),
        }
    return config
