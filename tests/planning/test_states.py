"""Bytes between two steps, were a model held once: 18 for a weight that trains, 2 for one that does not."""

from __future__ import annotations

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.planning.buffers import Optimizer
from bridge.planning.four_bits import stored_bytes
from bridge.planning.layouts import Layout
from bridge.planning.memory import states
from bridge.planning.states import state_bytes

MODEL = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 4, "num_query_groups": 2,
         "vocab_size": 11, "gated_linear_unit": True, "make_vocab_size_divisible_by": 1}  # fmt: skip
LAYER = {"linear_qkv": 8 * 16, "linear_proj": 64, "linear_fc1": 8 * 24, "linear_fc2": 96}
PARAMETERS = 2 * 88 + 8 + 2 * (sum(LAYER.values()) + 2 * 8)


def test_a_model_that_trains_in_full():
    assert state_bytes(compile_plan(MODEL)) == 18 * PARAMETERS
    assert state_bytes(compile_plan(load_recipe("llama3-8b", validate=False))) == 18 * 8_030_261_248


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-30b-a3b"])
def test_as_much_as_one_device_would_hold(name):
    plan = compile_plan(load_recipe(name, validate=False))
    assert state_bytes(plan) == states(plan, Layout(), Optimizer(use_distributed_optimizer=False)).total


def test_adapters_alone_have_gradients_and_states():
    peft = {"kind": "lora", "dim": 3, "target_modules": ["linear_proj"]}
    adapters = 2 * 2 * 3 * 8
    assert state_bytes(compile_plan({"model": MODEL, "peft": peft})) == 2 * PARAMETERS + 18 * adapters
    packed = sum(2 * (2 * size - stored_bytes(size)) for size in LAYER.values())
    assert state_bytes(compile_plan({"model": MODEL, "peft": peft | {"kind": "qlora"}})) == (
        2 * PARAMETERS + 18 * adapters - packed
    )
