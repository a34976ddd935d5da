"""Gated delta products by hand numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flops import compile_plan
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.planning.kv_cache import layer_caches

#: Two heads of 4, a state of 3 in one group: inside 8 wide.
SIZES = {
    "hidden_size": 6, "num_attention_heads": 2, "ffn_hidden_size": 10, "vocab_size": 12,
    "mamba_num_heads": 2, "mamba_head_dim": 4, "mamba_state_dim": 3, "mamba_num_groups": 1,
}  # fmt: skip


def forward(tokens: int = 7, convention: str = "megatron", **fields: Any) -> dict[str, Any]:
    found = compile_plan(SIZES | {"num_layers": None} | fields, convention).breakdown([tokens], passes="forward")
    return {name: flops / 2 for name, flops in found.items()}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("convention", ["megatron", "exact", "executed"])
def test_a_block_by_hand(steps, convention):
    """In and out projections, four taps, (4 n + 3) / 2 on a state of 8 x 3, in multiply-accumulates per token."""
    fields = {"hybrid_layer_pattern": "M-", "gated_delta_product": True, "gdp_num_householder": steps}
    projections = 6 * (8 + 3 + 2) * (1 + steps) + 8 * 6
    convolution = 4 * (8 * steps + 3 * (1 + steps))
    expected = projections + convolution + (4 * steps + 3) / 2 * 8 * 3
    assert forward(convention=convention, **fields)["gated_delta_product"] == 7 * expected


def test_every_mamba_layer_of_the_pattern_is_one_and_nothing_else():
    fields = {"num_layers": None, "hybrid_layer_pattern": "M*-M/M*", "num_moe_experts": 2}
    product = read(SIZES | fields | {"gated_delta_product": True}).shape
    assert [layer.mixer for layer in decoder_layers(product)] == ["gdp", "attention", "", "gdp"]
    assert [layer.mixer for layer in decoder_layers(read(SIZES | fields).shape)] == ["mamba", "attention", "", "mamba"]


def test_three_steps_where_none_are_given():
    fields = {"hybrid_layer_pattern": "M", "gated_delta_product": True}
    assert forward(**fields) == forward(**fields, gdp_num_householder=3)


@pytest.mark.parametrize(
    "spec",
    [
        ["megatron.core.models.hybrid.hybrid_layer_specs", "gdp_stack_spec"],
        ["[megatron.core.models.hybrid.hybrid_layer_specs,", "gated_delta_product_stack_spec]"],
        "megatron.core.models.hybrid.hybrid_layer_specs gdp_stack_spec",
    ],
    ids=str,
)
def test_megatron_lms_integer(spec):
    """What its num_floating_point_operations returns for one sequence of 2,048 tokens."""
    args = SimpleNamespace(
        hidden_size=1024, num_attention_heads=16, group_query_attention=True, num_query_groups=4, kv_channels=64,
        ffn_hidden_size=2816, swiglu=True, padded_vocab_size=32000, seq_length=2048, num_layers=8, mamba_num_heads=32,
        mamba_head_dim=64, mamba_state_dim=128, mamba_num_groups=8, hybrid_layer_pattern="M*-M-M*-", gdp_num_householder=2,
        spec=spec,
    )  # fmt: skip
    plan = compile_plan(SimpleNamespace(model=args), "megatron")
    assert plan.flops([2048]) == 1_320_551_448_576
    assert plan.not_counted == ()


def test_parameters():
    """Projections, four taps a channel without a bias, decay and step of each head, and two norms."""
    plan = compile_plan(SIZES | {"num_layers": None, "hybrid_layer_pattern": "M", "gated_delta_product": True}, "exact")
    block = 6 * (8 + 3 + 2) * 4 + 4 * (8 * 3 + 3 * 4) + 2 + 2 + 8 + 8 * 6
    assert plan.parameters()["total"] == block + 6 + 6 + 2 * 12 * 6


def test_the_state_and_the_last_inputs_of_the_convolution_are_kept():
    shape = read(SIZES | {"num_layers": None, "hybrid_layer_pattern": "M", "gated_delta_product": True}).shape
    ((state, inputs),) = layer_caches(shape)
    assert (state.entries, state.is_state, inputs.entries) == (8 * 3, True, 3 * (8 * 3 + 3 * 4))


@pytest.mark.parametrize(("module", "again"), [("gdp_in_proj", 6 * 13 * 4), ("gdp_qkv", 4 * (8 * 3 + 3 * 4))])
def test_what_runs_again(module, again):
    options = {"recompute_granularity": "selective", "recompute_modules": [module]}
    model = SIZES | {"num_layers": None, "hybrid_layer_pattern": "MM", "gated_delta_product": True} | options
    plan = compile_plan(model, "exact")
    assert plan.hardware_unknown == ()
    assert plan.flops([7], passes="hardware") - plan.flops([7]) == 2 * 2 * 7 * again
