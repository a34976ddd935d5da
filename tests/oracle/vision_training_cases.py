"""What the vision-language models of count_vision_training.py are, and what they look at. Plain data."""

from __future__ import annotations

from typing import Any

from bridge.config import Config, ModelConfig
from bridge.config.schema import DataConfig, TrainConfig

LANGUAGE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "gated_linear_unit": True,
    "vocab_size": 258,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 96,
    "image_token_id": 257,
}
TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 24,
    "num_heads": 2,
    "intermediate_size": 40,
    "patch_size": 4,
    "in_channels": 1,
    "temporal_patch_size": 1,
}

#: Options of the language model, and of the tower.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "table": ({"share_embeddings_and_output_weights": True}, {"num_position_embeddings": 16, "temporal_patch_size": 2}),
    "gated": ({"add_bias_linear": True}, {"hidden_act": "silu", "in_channels": 3, "spatial_merge_size": 1}),
    "experts": (
        {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24, "moe_router_load_balancing_type": "none"},
        {"num_heads": 3, "spatial_merge_size": 3},
    ),
    "recomputed": ({"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}, {}),
    "deepstack": ({}, {"deepstack_visual_indexes": [0, 2], "num_position_embeddings": 9}),
    # Windows of one block: larger ones are cut at the edges of an image, which its number of patches does not tell.
    "windows": ({}, {"hidden_act": "silu", "window_size": 8, "fullatt_block_indexes": [1]}),
}

FROZEN: dict[str, tuple[str, ...]] = {
    "full": (),
    "tower": ("freeze_vision_model",),
    "projection": ("freeze_vision_projection",),
    "tower+projection": ("freeze_vision_model", "freeze_vision_projection"),
    "language": ("freeze_language_model",),
    "language+tower": ("freeze_language_model", "freeze_vision_model"),
    "language+projection": ("freeze_language_model", "freeze_vision_projection"),
}

CASES = [("plain", frozen) for frozen in FROZEN] + [
    (model, frozen) for model in MODELS if model != "plain" for frozen in ("full", "tower", "language")
]

#: Images in each sample of a micro-batch.
BATCHES: dict[str, tuple[int, ...]] = {"several": (3, 2), "one": (1,), "some": (0, 1), "none": (0, 0)}


def config(model: str, frozen: str) -> Config:
    """The run of a case."""
    language, tower = MODELS[model]
    options: dict[str, Any] = {**LANGUAGE, **language, **dict.fromkeys(FROZEN[frozen], True)}
    return Config(
        model=ModelConfig(**options, vision_config={**TOWER, **tower}),
        train=TrainConfig(global_batch_size=1),
        data=DataConfig(kind="images", batching="packed", max_documents=60),
    )
