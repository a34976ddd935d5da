"""Weights, gradients and optimizer states, and what fits, by hand; ``test_built.py`` holds them against real models."""

from __future__ import annotations

import pytest

from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.buffers import Optimizer
from bridge.planning.layouts import Layout
from bridge.planning.memory import memory, states


def test_eight_billion_parameters() -> None:
    """Llama 3 8B on one device: 2 + 4 + 12 bytes a parameter, to a block's alignment of 128 entries."""
    plan = compile_plan(load_recipe("llama3-8b", validate=False))
    found = states(plan, Layout(), Optimizer(use_distributed_optimizer=False))
    parameters = 8_030_261_248
    assert (found.weights, found.gradients, found.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    split = memory(plan, Layout(devices=64, global_batch_size=64))[0].states
    assert (split.weights, split.gradients) == (2 * parameters, 4 * parameters)  # its sizes are multiples of 128 and of 64
    assert split.optimizer == 12 * parameters // 64


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v4-flash", "nemotron-h-8b", "gemma4-e2b", "qwen2.5-vl-7b"])
def test_one_device_holds_every_parameter(name: str) -> None:
    plan = compile_plan(load_recipe(name, validate=False))
    parameters = sum(term.parameters for term in plan.built_terms(padded=True) if term.name != "expert_bias")
    assert states(plan, Layout(), Optimizer(use_distributed_optimizer=False)).weights == 2 * parameters


def test_parts_add_up_and_stages_differ() -> None:
    plan = compile_plan(load_recipe("llama3-70b", validate=False))
    pipeline = PipelineLayout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=5)
    layout = Layout(devices=64, tensor_model_parallel_size=4, sequence_parallel=True, context_parallel_size=2, pipeline=pipeline,
                    global_batch_size=32)  # fmt: skip
    found = plan.memory(layout)
    assert [one.stage for one in found] == [0, 1, 2, 3]
    for one in found:
        assert sum(one.parts.values()) == one.total
    assert found[0].micro_batches == (8, 4, 4, 4, 3)  # 2 x 3 + 4 x 4 + 1 passes, in groups of four
    assert [bool(one.logits) for one in found] == [False, False, False, True]
    assert found[0].fits(80 * 2**30)
    assert not plan.memory(Layout(devices=8))[0].fits(80 * 2**30)


def test_full_recomputation_keeps_inputs_alone() -> None:
    options = ["model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"]
    plan = compile_plan(load_recipe("llama3-8b", options, validate=False))
    (found,) = memory(plan, Layout(devices=8))
    tables = 4 * 8192 * 128
    assert found.activations["recomputed_layers"] == 32 * 2 * 8192 * 4096 + tables
    # One layer runs again at a time, or the logits stand beside their probabilities.
    assert found.working == 2 * 8192 * 128256


def test_what_is_not_known_is_named() -> None:
    plan = compile_plan({"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512})
    with pytest.raises(ConfigError, match="sequence_length is missing"):
        memory(plan, Layout())
    with pytest.raises(ConfigError, match="implementation='apex' is not known"):
        memory(plan, Layout(), sequence_length=16, implementation="apex")


def test_what_kernels_keep_is_not_guessed() -> None:
    """A tower's activations hang on its images, a scan's on kernels that were not looked up."""
    for name, component, words in (
        ("qwen2.5-vl-7b", "vision_model", "depend on more than the sequences' length"),
        ("nemotron-h-8b", "mamba", "what its kernels keep is not known"),
    ):
        (found,) = memory(compile_plan(load_recipe(name, validate=False)), Layout())
        assert any(sentence.startswith(component) and words in sentence for sentence in found.unknown), found.unknown
    (dense,) = memory(compile_plan(load_recipe("llama3-8b", validate=False)), Layout())
    assert dense.unknown == ()


@pytest.mark.parametrize("name", ["train_llama3_8b", "train_qwen3_30b_a3b", "train_deepseek_v3"])
def test_a_recipes_own_layout(name: str) -> None:
    cfg = load_recipe(name, validate=False)
    layout = Layout.of(cfg)
    assert layout.stages == cfg.parallel.pipeline_model_parallel_size
    assert layout.devices % layout.experts_and_stages == layout.devices % layout.replica == 0
    found = memory(compile_plan(cfg), layout, Optimizer.of(cfg))
    assert len(found) == layout.stages
