"""A plan of what was routed: integers by hand; what real routers give is in tests/training/test_routing.py."""

import pytest

from bridge.config import Config, ModelConfig
from bridge.flops import ConfigError, compile_plan
from bridge.flops.routed import Bound, bound, expert_count, expert_layers, routed

HIDDEN, FFN, LENGTH = 32, 24, 50
MODEL = {"num_layers": 3, "hidden_size": HIDDEN, "num_attention_heads": 4, "ffn_hidden_size": 48, "vocab_size": 64,
         "num_moe_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": FFN, "gated_linear_unit": True,
         "moe_layer_freq": [0, 1, 1]}  # fmt: skip
#: One pass of one row: gate, values and the way back.
ROW = 2 * 3 * HIDDEN * FFN


def evaluated(plan, told, passes="training"):
    as_routed = routed(plan)
    known = dict(zip((s.name for s in plan.statistics), plan.measure([LENGTH]), strict=True))
    return as_routed.evaluate([{**known, **told}.get(s.name, 0) for s in as_routed.statistics], passes)


def test_assignments_and_padding_by_hand():
    plan = compile_plan(MODEL, "exact")
    assert expert_layers(plan) == {"decoder.layers.1.mlp": 0, "decoder.layers.2.mlp": 1}
    assert expert_count(plan) == 8
    dropless = {"assignments_of_routed[0]": 2 * LENGTH, "assignments_of_routed[1]": 2 * LENGTH}
    assert evaluated(plan, dropless) == plan.flops([LENGTH])
    fewer = {"assignments_of_routed[0]": 2 * LENGTH - 7, "assignments_of_routed[1]": 2 * LENGTH - 4}
    assert evaluated(plan, fewer) == plan.flops([LENGTH]) - 3 * ROW * 11
    filled = {**fewer, "padding_of_routed[1]": 20}
    assert evaluated(plan, filled) == plan.flops([LENGTH]) - 3 * ROW * 11
    assert evaluated(plan, filled, "hardware") == plan.flops([LENGTH]) + 3 * ROW * (20 - 11)


def test_what_runs_again_and_what_is_frozen():
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    plan = compile_plan(MODEL | full, "exact")
    none = {"assignments_of_routed[0]": 0, "assignments_of_routed[1]": 0}
    assert plan.flops([LENGTH], passes="hardware") - evaluated(plan, none, "hardware") == 4 * ROW * 2 * 2 * LENGTH
    assert evaluated(plan, {**none, "padding_of_routed[0]": 5}, "hardware") - evaluated(plan, none, "hardware") == 4 * ROW * 5
    lora = {"model": MODEL, "peft": {"kind": "lora", "dim": 4, "target_modules": ["linear_fc1"]}}
    plan = compile_plan(lora, "exact")
    adapters = 2 * 4 * (HIDDEN + 2 * FFN)  # of one row, two matrices
    one_more = {"assignments_of_routed[0]": 1}
    # Frozen weights have no gradient of their own; nothing trains below the first layer's experts but the layers themselves.
    assert evaluated(plan, one_more) - evaluated(plan, {}) == 2 * ROW + 3 * adapters


def test_stages_and_formats_follow():
    plan = routed(compile_plan(MODEL | {"bf16": True, "fp8": "hybrid"}, "exact"))
    vector = [int(s.name == "assignments_of_routed[1]") for s in plan.statistics]
    assert plan.evaluate_stages(vector, 3) == [0, 0, 3 * ROW]
    assert plan.evaluate_formats(vector) == {"fp8": 3 * ROW, "bf16": 0}
    assert plan.evaluate_components(vector)["moe"] == 3 * ROW


def test_lengths_say_nothing_of_it():
    plan = routed(compile_plan(MODEL))
    with pytest.raises(ConfigError, match="routers count the tokens of experts"):
        plan.flops([LENGTH])


def test_bounds():
    assert bound(64, 2, 4) == bound(64, 2, 4, -1) == Bound(128, exact=True)
    assert bound(64, 2, 4, 0.75) == Bound(4 * 24, exact=False)
    assert bound(64, 2, 4, 3.0) == Bound(128, exact=False)
    assert bound(64, 2, 4, 0.76, pad=True) == Bound(4 * 25, exact=True)


def test_a_configuration_alone_says_that_it_is_a_bound():
    model = {name: value for name, value in MODEL.items() if name != "moe_layer_freq"}
    config = Config(model=ModelConfig(**model, moe_expert_capacity_factor=1.0))
    plan = compile_plan(config)
    assert [sentence for sentence in plan.not_counted if sentence.startswith("moe_expert_capacity_factor=1.0: tokens that")]
    assert not [sentence for sentence in routed(plan).not_counted if sentence.startswith("moe_expert_capacity_factor=")]
    assert compile_plan(Config(model=ModelConfig(**model))).not_counted == ()
