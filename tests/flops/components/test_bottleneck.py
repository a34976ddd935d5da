"""The half of a layer that works in a narrower width, beside the same layers in torch."""

from __future__ import annotations

import pytest
import torch
from oracle.counter import count
from torch import nn

from bridge.flops import compile_plan
from bridge.flops.components.bottleneck import bottleneck
from bridge.flops.components.mlp import mlp
from tests.flops.components.blocks import SMALL, executed, plan_of, priced

NORM, FC1, FC2, UP = "latent_norm", "mlp.linear_fc1", "mlp.linear_fc2", "layer_up_projection"


def half():
    parts = [
        nn.LayerNorm(8, bias=False),
        nn.Linear(8, 20, bias=False),
        nn.Linear(20, 8, bias=False),
        nn.Linear(8, 12, bias=False),
    ]
    return nn.Sequential(*parts)


def terms():
    return bottleneck(mlp(hidden_size=8, ffn_hidden_size=20, gated=False), hidden_size=12, width=8)


def test_norm_block_and_the_way_back():
    layers = half()
    assert priced(terms(), sequence_lengths=[7]) == executed(layers, lambda: layers(torch.zeros(7, 8)))
    assert [term.path for term in plan_of(terms()).terms if term.has_weight] == [NORM, FC1, FC2, UP]


@pytest.mark.parametrize("trained", [(NORM,), (FC1,), (FC2,), (UP,), (FC2, UP), ()], ids=str)
def test_gradients_pass_through_the_block_and_not_around_it(trained):
    """Only the layer as a whole is residual."""
    layers = half()
    for layer, path in zip(layers, (NORM, FC1, FC2, UP), strict=True):
        layer.requires_grad_(path in trained)

    def run():
        output = layers(torch.zeros(7, 8)).sum()
        return output.backward() if trained else output

    assert plan_of(terms(), trains=trained.__contains__).flops([7]) == count(run)


def test_a_layer_of_a_model_ends_its_attention_in_that_width():
    """With the last matrix of the attention in training: its weight, and back through everything behind it."""
    path = "decoder.layers.0.self_attention.linear_proj"
    plan = compile_plan(SMALL | {"attention_output_size": 8}, "exact", framework="transformers", trainable=path.__eq__)
    behind = 2 * 8 * 20 + 8 * 12 + 12 * 50
    assert plan.flops([7]) - plan.flops([7], passes="forward") == 2 * 7 * (12 * 8 + behind)
    assert plan.breakdown([7], passes="forward")["self_attention"] == 2 * 7 * (3 * 12 * 12 + 12 * 8)


def test_the_residual_sum_is_as_wide_as_the_stream():
    *_, last = terms()
    assert (last.name, last.inputs, last.operations.additions) == ("residual", ("hidden",), 12)
