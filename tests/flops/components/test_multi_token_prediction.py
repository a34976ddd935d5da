"""What a depth of multi-token prediction adds around its layer, beside the same modules in torch."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from oracle.counter import count
from torch import Tensor, nn

from bridge.flops import compile_plan
from bridge.flops.components.multi_token_prediction import entry, exit
from tests.flops.components.blocks import SMALL, executed, macs, plan_of, priced


class Depth(nn.Module):
    """Norms over the last states and the next embedding, both projected, and the norm at the end."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.enorm, self.hnorm, self.final_layernorm = (nn.LayerNorm(12, bias=bias) for _ in range(3))
        self.eh_proj = nn.Linear(24, 12, bias=False)

    def forward(self, embedded: Tensor, states: Tensor) -> Tensor:
        return self.final_layernorm(self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(states)], -1)))


def terms(bias: bool = False):
    last = exit(hidden_size=12, to="states_1", norm_bias=bias)
    return [*entry(hidden_size=12, source="states_0", norm_bias=bias), last]


@pytest.mark.parametrize("bias", [False, True])
def test_a_depth(bias):
    module, states = Depth(bias), torch.zeros(7, 12)
    assert priced(terms(bias), sequence_lengths=[7]) == executed(module, lambda: module(states, states))


@pytest.mark.parametrize("trained", ["enorm", "hnorm", "eh_proj", "final_layernorm"])
def test_either_half_asks_for_the_gradient_of_the_projection(trained):
    module, states = Depth(False), torch.zeros(7, 12)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    run = count(lambda: module(states, states).sum().backward())
    assert plan_of(terms(), trains=lambda path: path == trained).flops([7]) == run


def test_megatron_prices_three_norms_as_matmuls():
    assert macs(terms(), 7, "megatron") - macs(terms(), 7, "exact") == 7 * 3 * 12


def test_names_are_megatron_cores():
    pytest.importorskip("megatron.core")
    from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayerSubmodules

    known = {field.name for field in fields(MultiTokenPredictionLayerSubmodules)}
    assert {term.path or term.name for term in entry(hidden_size=12, source="states_0") if term.has_weight} <= known


@pytest.mark.parametrize("depths", [1, 2])
def test_each_depth_has_its_own(depths):
    plain, deep = (compile_plan(SMALL | {"mtp_num_layers": number}, "exact") for number in (None, depths))
    assert deep.breakdown([7], passes="forward")["mtp"] == depths * 2 * 7 * 24 * 12
    own = sum(parameter.numel() for parameter in Depth(False).parameters())
    layer = plain.parameters()["total"] - 2 * 50 * 12 - 12  # without the vocabulary at both ends and the last norm
    assert deep.parameters()["total"] - plain.parameters()["total"] == depths * (own + layer)
