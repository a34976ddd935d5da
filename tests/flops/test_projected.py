"""An output layer that is fused with the loss, by hand and by execution."""

from __future__ import annotations

import pytest

from bridge.flops import compile_plan
from bridge.flops.projected import projected

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "vocab_size": 128}
HEAD = 2 * 64 * 128


def vector(plan, lengths, positions):
    found = plan.measure(lengths)
    found[[statistic.name for statistic in plan.statistics].index("projected_tokens")] = positions
    return found


def test_positions_that_are_left_out_cost_no_projection():
    plan = compile_plan(MODEL, "exact")
    fused = projected(plan)
    assert fused.flops([10, 5]) == plan.flops([10, 5])  # without a count of them, all positions are projected
    assert plan.flops([10, 5]) - fused.evaluate(vector(fused, [10, 5], 4)) == 3 * HEAD * (15 - 4)
    assert fused.not_counted == plan.not_counted
    assert fused.parameters() == plan.parameters()


def test_the_logits_are_computed_again_in_the_backward_pass():
    fused = projected(compile_plan(MODEL, "exact"))
    batch = vector(fused, [10, 5], 4)
    assert fused.evaluate(batch, "hardware") - fused.evaluate(batch) == HEAD * 4
    fixed = projected(compile_plan({"model": MODEL, "peft": {"kind": "freeze", "freeze": ["*"]}}, "exact"))
    batch = vector(fixed, [10, 5], 4)
    assert fixed.evaluate(batch, "hardware") == fixed.evaluate(batch)  # without a backward pass they are not


@pytest.mark.parametrize("sums", [(2, 15, 125), (1, 10, 100)])
def test_from_sums_of_lengths_all_are_projected(sums):
    from bridge.flops.moments import Moments

    plan = compile_plan(MODEL, "exact")
    fused, moments = projected(plan), Moments.of(*sums)
    assert fused.evaluate(fused.measure_moments(moments)) == plan.evaluate(plan.measure_moments(moments))
    assert fused.text_form() is None


def test_a_plan_without_an_output_layer_says_so():
    tower = {"vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 14}}
    plan = compile_plan({"model": tower}, "exact")
    (sentence,) = set(projected(plan).not_counted) - set(plan.not_counted)
    assert sentence.startswith("the output layer is fused with the loss")


def test_execution_of_a_model_that_projects_what_is_learned_from():
    pytest.importorskip("transformers")
    import tiny_llama
    import torch
    from oracle.counter import count

    from bridge.config import from_huggingface

    model = tiny_llama.model()
    tokens = torch.arange(12)[None]
    learned = torch.arange(12)[None] >= 9

    def run():
        hidden = model.model(tokens, use_cache=False).last_hidden_state
        model.lm_head(hidden[learned]).sum().backward()

    fused = projected(compile_plan(from_huggingface(model.config), "executed"))
    assert fused.evaluate(vector(fused, [12], 3)) == count(run)
