"""What a depth of multi-token prediction adds around its layer, beside the same modules in torch."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from bridge.flops import compile_plan
from bridge.flops.components.multi_token_prediction import entry, exit
from bridge.flops.terms import Term, table
from tests.flops.components.blocks import SMALL, executed, macs, priced, trained_alone


class Depth(nn.Module):
    """Norms over the last states and the next embedding, both projected, the norm at the end, and the logits behind it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embedding, self.below = nn.Embedding(50, 12), nn.Linear(12, 12, bias=False)
        self.enorm, self.hnorm, self.final_layernorm = (nn.LayerNorm(12, bias=bias) for _ in range(3))
        self.eh_proj, self.logits = nn.Linear(24, 12, bias=False), nn.Linear(12, 50, bias=False)

    def forward(self) -> Tensor:
        embedded, states = self.embedding(torch.zeros(7, dtype=torch.long)), self.below(torch.zeros(7, 12))
        both = torch.cat([self.enorm(embedded), self.hnorm(states)], -1)
        return self.logits(self.final_layernorm(self.eh_proj(both)))


def terms(bias: bool = False):
    options = {"norm_bias": True} if bias else {}
    return [
        table("embedding", "embedding", 50, 12, to=("embedded",)),
        Term("below", "below", 12, 12, inputs=("x",), outputs=("states_0",)),
        *entry(hidden_size=12, source="states_0", **options),
        exit(hidden_size=12, to="states_1", **options),
        Term("logits", "logits", 12, 50, inputs=("states_1",), outputs=("loss",)),
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_a_depth(bias):
    module = Depth(bias)
    assert priced(terms(bias), sequence_lengths=[7]) == executed(module, module)


def test_gradients():
    """Either half asks for that of the projection's input, and all that is below for that of the logits'."""
    module = Depth(False)
    found, counted = trained_alone(
        terms(), module, module, {name: name for name, _ in module.named_children()}, sequence_lengths=[7]
    )
    assert found == counted


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
    own = sum(p.numel() for name, p in Depth(False).named_parameters() if not name.startswith(("embedding", "below", "logits")))
    layer = plain.parameters()["total"] - 2 * 50 * 12 - 12  # without the vocabulary at both ends and the last norm
    assert deep.parameters()["total"] - plain.parameters()["total"] == depths * (own + layer)
