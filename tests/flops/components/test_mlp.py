"""Dense MLPs beside transformers' own: gated or not, with biases, with an activation that learns, twice as wide."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from transformers import ApertusConfig, Gemma4TextConfig, GPTNeoXConfig, LlamaConfig
from transformers.models.apertus.modeling_apertus import ApertusMLP
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextMLP
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from bridge.flops.components.mlp import halves, mlp
from bridge.flops.elementwise import MULTIPLICATION, SILU, Operations
from bridge.flops.terms import Role
from tests.flops.components.blocks import executed, in_layer, priced

SIZES = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 4}
KINDS = ["sliding_attention", "full_attention"] * 2
MODULES = {
    "gated": (lambda: LlamaMLP(LlamaConfig(**SIZES)), {"gated_linear_unit": True}),
    "gated with biases": (
        lambda: LlamaMLP(LlamaConfig(**SIZES, mlp_bias=True)),
        {"gated_linear_unit": True, "add_mlp_bias": True},
    ),
    "plain with biases": (lambda: GPTNeoXMLP(GPTNeoXConfig(**SIZES)), {"add_bias_linear": True}),
    "plain": (lambda: ApertusMLP(ApertusConfig(**SIZES, hidden_act="relu2")), {"activation_func": "squared_relu"}),
    "learned": (lambda: ApertusMLP(ApertusConfig(**SIZES)), {"activation_func": "xielu"}),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_of_transformers(name):
    build, fields = MODULES[name]
    module = build()
    found = executed(module, lambda: module(torch.zeros(7, 12)))
    assert priced(in_layer(fields, channel=True), sequence_lengths=[7]) == found
    # One matmul for gate and values is the same work.
    assert priced(in_layer(fields, channel=True, framework="transformers_fused"), sequence_lengths=[7]) == found


@pytest.mark.parametrize("wide", [False, True])
def test_layers_that_share_keys_may_be_twice_as_wide(wide):
    config = Gemma4TextConfig(**SIZES, num_hidden_layers=4, layer_types=KINDS, num_kv_shared_layers=2, use_double_wide_mlp=wide)
    fields = {"num_layers": 4, "num_kv_shared_layers": 2, "use_double_wide_mlp": wide, "gated_linear_unit": True}
    for layer in range(4):
        module = Gemma4TextMLP(config, layer)
        found = executed(module, lambda: module(torch.zeros(7, 12)))  # noqa: B023
        assert priced(in_layer(fields, channel=True, layer=layer), sequence_lengths=[7]) == found


def test_layers_that_share_keys_are_as_wide_as_the_others_where_nothing_is_said():
    assert priced(in_layer({"num_kv_shared_layers": 1}, channel=True), sequence_lengths=[7])[0] == 2 * 7 * 2 * 12 * 20


def test_names_and_what_a_fused_layer_is_made_of():
    def names(**options: bool) -> list[str]:
        return [term.name for term in mlp(hidden_size=12, ffn_hidden_size=20, **options) if term.has_weight]

    assert names(gated=True) == names(gated=False) == names(gated=False, fused=False) == ["linear_fc1", "linear_fc2"]
    assert names(gated=True, fused=False) == ["linear_fc1_gate", "linear_fc1_up", "linear_fc2"]
    (fused, *_), (plain, *_) = (mlp(hidden_size=12, ffn_hidden_size=20, gated=gated) for gated in (True, False))
    assert (fused.parts, fused.n) == (halves(20), 40)
    assert (plain.parts, plain.n) == ((), 20)
    assert sum(columns for _, columns in halves(20)) == 40


@pytest.mark.parametrize("gated", [False, True])
def test_what_is_not_a_matmul(gated):
    """The activation of every inner number, and its product with the gate where there is one."""
    done = Operations()
    for term in mlp(hidden_size=12, ffn_hidden_size=20, gated=gated, activation=SILU):
        done += term.operations
    assert done == 20 * (SILU + MULTIPLICATION if gated else SILU)


def test_every_term_of_a_layer_is_the_mlps():
    terms = in_layer({}, channel=True)
    assert all(term.roles == Role.MLP and term.path.startswith("mlp.") for term in terms)
