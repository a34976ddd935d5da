"""Gated delta net beside Qwen3-Next's layer; its recurrence, one product after the other; the second generation by hand."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import Tensor
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet, torch_recurrent_gated_delta_rule

from bridge.flops import compile_plan
from bridge.flops.components.gated_delta_net import STATE_MACS
from bridge.flops.reading import read
from bridge.flops.terms import Kind
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, linears, macs, plan_of

#: Two key heads of 3, four value heads of 5.
FIELDS = {
    "experimental_attention_variant": "gdn", "linear_attention_freq": [1], "linear_key_head_dim": 3, "linear_num_key_heads": 2,
    "linear_value_head_dim": 5, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4,
}  # fmt: skip
KEYS, VALUES = 2 * 3, 4 * 5


def test_the_weights_of_qwen3_next():
    config = Qwen3NextConfig(
        hidden_size=12, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=2, linear_key_head_dim=3,
        linear_num_value_heads=4, linear_value_head_dim=5, linear_conv_kernel_dim=4,
    )  # fmt: skip
    module = Qwen3NextGatedDeltaNet(config, 0)
    plan = plan_of([term for term in in_layer(FIELDS) if term.kind is not Kind.SCAN], "exact")
    taps = plan.flops([7], passes="forward") - linears(module, 7)
    assert taps == 2 * 7 * 4 * (2 * KEYS + VALUES)
    assert plan_of(in_layer(FIELDS)).parameters()["total"] == sum(parameter.numel() for parameter in module.parameters())


def test_the_recurrence_step_by_step():
    """Decay, read, write and answer: four products on each entry of the state, which give transformers' outputs."""
    torch.manual_seed(0)
    heads, tokens = 4, 6
    query, key, value = (torch.randn(tokens, heads, size) for size in (3, 3, 5))
    decay, strength = -torch.rand(tokens, heads), torch.rand(tokens, heads)

    def run() -> Tensor:
        state, outputs = torch.zeros(heads, 3, 5), []
        for step in range(tokens):
            kept = state.reshape(-1, 1, 1) @ decay[step].exp().repeat_interleave(15)[:, None, None]
            state = kept.reshape(heads, 3, 5)
            read = key[step][:, None] @ state
            state = state + key[step][:, :, None] @ (strength[step][:, None, None] * (value[step][:, None] - read))
            outputs.append(query[step][:, None] @ state / 3**0.5)
        return torch.stack(outputs)[:, :, 0]

    expected, _ = torch_recurrent_gated_delta_rule(query[None], key[None], value[None], decay[None], strength[None])
    torch.testing.assert_close(run(), expected[0])
    scan = [term for term in in_layer(FIELDS) if term.kind is Kind.SCAN]
    assert plan_of(scan, "exact").flops([tokens], passes="forward") == count(run)
    assert count(run) == 2 * tokens * STATE_MACS * heads * 3 * 5


def test_megatron_takes_a_square_state():
    scan = {
        name: [term for term in in_layer(FIELDS, convention=name) if term.kind is Kind.SCAN] for name in ("megatron", "exact")
    }
    assert {name: macs(found, 1) for name, found in scan.items()} == {"megatron": 4 * 4 * 5 * 5, "exact": 4 * 4 * 3 * 5}


def test_the_second_generation_by_hand():
    """Its input projection makes 4 K + 3 U values; the rest is that of the first."""
    first, second = (in_layer(FIELDS | {"experimental_attention_variant": name}) for name in ("gdn", "gdn2"))
    assert macs(second, 1) - macs(first, 1) == 12 * (4 * KEYS + 3 * VALUES - (2 * KEYS + 2 * VALUES + 2 * 4))


def test_multiply_accumulates_of_a_token_of_gdn2():
    """K = 2 x 8, U = 4 x 8: h (4 K + 3 U) = 10240, convolution 4 (2 K + U) = 256, state 4 x 4 x 8^2 = 1024, output h U = 2048."""
    sizes = {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 8, "num_attention_heads": 2, "vocab_size": 128}
    fields = {
        "experimental_attention_variant": "gdn2", "linear_attention_freq": [1], "linear_key_head_dim": 8,
        "linear_num_key_heads": 2, "linear_value_head_dim": 8, "linear_num_value_heads": 4,
    }  # fmt: skip
    parts: dict[str, Any] = compile_plan(sizes | fields, "megatron").breakdown([10], passes="forward")
    assert sum(flops for part, flops in parts.items() if part not in ("mlp", "output_layer")) == 2 * 10 * 13568


def test_the_state_and_the_last_inputs_are_kept():
    ((state, inputs),) = layer_caches(read(SMALL | FIELDS).shape)
    assert (state.entries, state.is_state) == (4 * 3 * 5, True)
    assert (inputs.entries, inputs.is_state) == ((4 - 1) * (2 * KEYS + VALUES), False)
