"""The vision-language trainings of vision_worker.py. Plain data."""

from __future__ import annotations

from typing import Any

from bridge.config import with_overrides
from bridge.config.schema import Config, DataConfig, LoggerConfig, ModelConfig, OptimizerConfig, TrainConfig

STEPS, FORK, BATCH = 4, 2, 4

TOWER = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "in_channels": 1, "temporal_patch_size": 1}

#: Options of the language model, of the tower, and the batching.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "table": ({"share_embeddings_and_output_weights": True}, {"num_position_embeddings": 16}, "packed"),
    "deep": ({}, {"deepstack_visual_indexes": [1], "hidden_act": "silu"}, "packed"),
    "experts": ({"num_moe_experts": 4, "moe_ffn_hidden_size": 24, "moe_aux_loss_coeff": 0.01}, {}, "padded"),
}

LAYOUTS: dict[str, list[str]] = {
    "dp2": [],
    "padded": ["data.batching=padded"],
    "overlapped": ["optimizer.use_distributed_optimizer=true", "optimizer.overlap_grad_reduce=true",
                   "optimizer.overlap_param_gather=true"],
    "tp2": ["parallel.tensor_model_parallel_size=2"],
    "tp2sp": ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"],
    "pp2": ["parallel.pipeline_model_parallel_size=2"],
}  # fmt: skip

CONTINUED = (
    "table/dp2", "table/padded", "table/tp2", "table/pp2", "deep/tp2sp", "deep/pp2", "experts/tp2sp",
)  # fmt: skip

#: Name -> the switches, the layout, and the parts whose weights must not move.
FROZEN: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "tower": (("freeze_vision_model",), "dp2", ("vision_model.patch_embed", "vision_model.decoder")),
    # The second stage has nothing to train then; gradients go through it all the same.
    "language": (("freeze_language_model",), "pp2", ("embedding", "decoder", "output_layer")),
    "projector_alone": (
        ("freeze_language_model", "freeze_vision_model"),
        "dp2",
        ("embedding", "decoder", "output_layer", "vision_model.patch_embed", "vision_model.decoder"),
    ),
}


def config(folder: str, model: str, *overrides: str) -> Config:
    """A training that writes into ``folder``."""
    language, tower, batching = MODELS[model]
    base = Config(
        name="test",
        model=ModelConfig(
            **{
                "num_layers": 2,
                "hidden_size": 32,
                "ffn_hidden_size": 48,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "gated_linear_unit": True,
                "vocab_size": 258,
                "make_vocab_size_divisible_by": 1,
                "seq_length": 64,
                "image_token_id": 257,
                "vision_config": {**TOWER, **tower},
                **language,
            }
        ),
        train=TrainConfig(train_iters=STEPS, global_batch_size=BATCH, micro_batch_size=1, eval_interval=4, eval_iters=1),
        data=DataConfig(kind="images", batching=batching, max_documents=100, images_per_sample=2),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-2, min_lr=1e-3),
        logger=LoggerConfig(log_interval=1, dir=folder, metrics_file=f"{folder}/metrics.jsonl", wandb_project=None),
        callbacks=[
            {"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "exact", "peak_flops": 1e12},
            {"_target_": "worker.Recorder"},
            {"_target_": "vision_worker.Weights"},
        ],
    )
    return with_overrides(base, list(overrides))
