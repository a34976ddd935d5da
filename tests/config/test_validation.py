"""One broken configuration per rule; the message names option, value and remedy."""

from __future__ import annotations

import pytest

from bridge.config import ConfigError, data_parallel_size, load_recipe, validate_layout

TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"
VPP, CP = "parallel.virtual_pipeline_model_parallel_size", "parallel.context_parallel_size"
EP = "parallel.expert_model_parallel_size"


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("tiny", [f"{TP}=3"], ["model.num_attention_heads=4", f"{TP}=3", "may be 1, 2, 4"]),
        ("tiny", [f"{TP}=4", "model.num_attention_heads=12", "model.num_query_groups=6"], ["num_query_groups=6", f"{TP}=4"]),
        ("tiny", [f"{TP}=4", "model.ffn_hidden_size=350"], ["model.ffn_hidden_size=350", f"{TP}=4"]),
        ("tiny", [f"{PP}=3"], ["model.num_layers=4", f"{PP}=3", "(1, 2, 4)"]),
        ("tiny", [f"{PP}=2", f"{VPP}=4"], ["model.num_layers=4", "virtual_pipeline_model_parallel_size=4"]),
        ("tiny", [f"{VPP}=2"], [f"{VPP}=2", f"{PP} above 1"]),
        ("tiny", ["parallel.sequence_parallel=true"], ["sequence_parallel=true", f"{TP} above 1"]),
        ("tiny", [f"{CP}=3"], ["model.seq_length=256", f"2 x {CP}=3"]),
        ("tiny", [f"{EP}=2"], [f"{EP}=2", "model.num_moe_experts"]),
        ("tiny_moe", [f"{EP}=3"], ["model.num_moe_experts=4", f"{EP}=3", "may be 1, 2, 4"]),
        ("tiny_moe", ["model.moe_router_topk=5"], ["model.moe_router_topk=5", "model.num_moe_experts=4"]),
        ("tiny_moe", [f"{TP}=2"], [f"{TP}=2", "parallel.sequence_parallel=true"]),
        ("tiny_moe", ["model.num_layers=5"], ["model.moe_layer_freq has 4 entries", "model.num_layers=5"]),
        ("tiny", ["train.global_batch_size=10"], ["train.global_batch_size=10", "train.micro_batch_size=4"]),
        ("tiny", ["train.train_iters=0"], ["train.train_iters=0", "at least 1"]),
        ("tiny", ["model.hidden_dropout=1.5"], ["model.hidden_dropout=1.5", "at most 1"]),
        ("tiny", ["data.eval_fraction=-0.1"], ["data.eval_fraction=-0.1", "at least 0"]),
        ("tiny", ["model.vocab_size=null"], ["model.vocab_size is not set"]),
        ("tiny", ["train.rampup_batch_size=[4, 4]"], ["train.rampup_batch_size=[4, 4]", "[start, increment, samples]"]),
        ("tiny", ["train.rampup_batch_size=[4, 5, 100]"], ["train.rampup_batch_size", "train.global_batch_size=16"]),
        ("tiny", ["train.eval_interval=5"], ["train.eval_interval=5", "train.eval_iters"]),
        ("tiny", ["optimizer.min_lr=1"], ["optimizer.min_lr=1", "optimizer.lr=0.002"]),
        ("tiny", ["optimizer.lr_warmup_iters=80"], ["optimizer.lr_warmup_iters=80", "optimizer.lr_decay_iters"]),
        ("tiny", ["optimizer.overlap_param_gather=true"], ["overlap_param_gather=true", "use_distributed_optimizer=true"]),
        ("tiny", ["model.recompute_granularity=half"], ["model.recompute_granularity=half", "full or selective"]),
        ("tiny", ["model.recompute_granularity=full"], ["model.recompute_method", "uniform or block"]),
        ("tiny", ["callbacks=[throughput]"], ["callbacks[0]='throughput'", "_target_"]),
        ("tiny", ["hardware.peak_flops=0"], ["hardware.peak_flops=0", "at least 1"]),
    ],
)
def test_what_no_number_of_ranks_can_mend(recipe, overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    for word in words:
        assert word in str(caught.value)
    load_recipe(recipe, overrides, validate=False)  # counting does not need what only training needs


@pytest.mark.parametrize(
    ("recipe", "overrides", "world_size", "words"),
    [
        ("tiny", [f"{TP}=2", f"{PP}=2"], 6, ["6 ranks", f"{TP}=2", "= 4 ranks", "multiple of 4"]),
        ("tiny", [], 3, ["train.global_batch_size=16", "micro_batch_size=4 x 3", "multiple of 12"]),
        ("tiny", ["train.rampup_batch_size=[4, 4, 100]"], 2, ["train.rampup_batch_size[0]=4", "multiple of 8"]),
        ("tiny_moe", [f"{EP}=4"], 2, ["2 ranks", f"{EP}=4", "multiple of 4"]),
        ("tiny", [f"{PP}=2", f"{VPP}=2", "train.global_batch_size=12"], 2, ["3 micro-batches", "multiple of 8"]),
    ],
)
def test_a_layout_that_does_not_fit_the_ranks(recipe, overrides, world_size, words):
    cfg = load_recipe(recipe, overrides)
    with pytest.raises(ConfigError) as caught:
        validate_layout(cfg, world_size)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "overrides", "world_size", "replicas"),
    [
        ("tiny", [], 4, 4),
        ("tiny", [f"{TP}=2", f"{PP}=2"], 4, 1),
        ("tiny", [f"{PP}=2", f"{VPP}=2"], 4, 2),
        ("tiny", [f"{CP}=2"], 4, 2),
        ("tiny_moe", [], 2, 2),
        ("train_llama3_8b", [], 8, 4),
        ("train_qwen3_30b_a3b", [], 16, 8),
        ("deepseek_v3", [], 1024, 64),
    ],
)
def test_layouts_that_fit(recipe, overrides, world_size, replicas):
    cfg = load_recipe(recipe, overrides)
    validate_layout(cfg, world_size)
    assert data_parallel_size(cfg, world_size) == replicas
