"""Mamba-2 beside transformers' mixer, alone and next to an attention."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from bridge.flops.components.mamba import mixer_heads
from bridge.flops.components.registry import MIXERS
from bridge.flops.frameworks import FRAMEWORKS
from bridge.flops.reading import read
from bridge.flops.terms import Kind
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, linears, macs, plan_of

#: Six heads of 4, a state of 5, three groups.
FIELDS = {
    "hybrid_layer_pattern": "M", "mamba_num_heads": 6, "mamba_head_dim": 4, "mamba_state_dim": 5, "mamba_num_groups": 3,
}  # fmt: skip
INNER, CONVOLVED = 24, 24 + 2 * 3 * 5


def mixer() -> Mamba2Mixer:
    config = Mamba2Config(
        hidden_size=12, num_heads=6, head_dim=4, expand=2, state_size=5, n_groups=3, conv_kernel=4, num_hidden_layers=1
    )
    return Mamba2Mixer(config, 0)


def test_the_weights_of_mamba_2():
    module = mixer()
    plan = plan_of([term for term in in_layer(FIELDS) if term.kind not in (Kind.SCAN, Kind.CONVOLUTION)])
    assert plan.flops([7], passes="forward") == linears(module, 7)
    assert plan_of(in_layer(FIELDS)).parameters()["total"] == sum(parameter.numel() for parameter in module.parameters())
    plain = plan_of(in_layer(FIELDS | {"mamba_rms_norm": False})).parameters()["total"]
    assert plan_of(in_layer(FIELDS)).parameters()["total"] - plain == module.norm.weight.numel()


def test_the_convolution_where_it_is_counted():
    """Four taps over x, B and C, the past filled up with zeros."""
    convolution = nn.Conv1d(CONVOLVED, CONVOLVED, 4, groups=CONVOLVED)
    taps = {name: [term for term in in_layer(FIELDS, convention=name) if term.kind is Kind.CONVOLUTION]
            for name in ("executed", "exact", "megatron", "maxtext")}  # fmt: skip
    run = count(lambda: convolution(torch.zeros(1, CONVOLVED, 3 + 7)))
    found = {name: plan_of(terms, name).flops([7], passes="forward") for name, terms in taps.items()}
    assert found == {"executed": run, "exact": 0, "megatron": 0, "maxtext": 0}
    assert {plan_of(terms).parameters()["total"] for terms in taps.values()} == {
        sum(parameter.numel() for parameter in convolution.parameters())
    }


def test_seven_operations_an_entry_of_the_state():
    scan = [term for term in in_layer(FIELDS) if term.kind is Kind.SCAN]
    assert plan_of(scan, "exact").flops([7], passes="forward") == 7 * 7 * INNER * 5


def test_megatron_takes_twice_the_width_of_the_stream():
    """Three heads of 4 are 12 wide, half of what its formula says; groups and heads are as they are."""
    fields = FIELDS | {"mamba_num_heads": 3}
    one = {
        name: macs([t for t in in_layer(fields, convention=name) if t.kind is Kind.LINEAR], 1) for name in ("exact", "megatron")
    }
    assert one == {"exact": 12 * (2 * 12 + 30 + 3) + 12 * 12, "megatron": 12 * (2 * 24 + 30 + 3) + 24 * 12}


@pytest.mark.parametrize(("fields", "heads"), [({"mamba_num_heads": 7}, 7), ({"mamba_num_heads": None}, 6)])
def test_heads_that_are_not_set_fill_twice_the_width(fields, heads):
    assert mixer_heads(read(SMALL | FIELDS | fields).shape) == heads


def test_side_by_side_with_an_attention():
    alone = [macs(in_layer(FIELDS | {"hybrid_layer_pattern": symbol}), 7) for symbol in "M*"]
    assert macs(in_layer(FIELDS | {"hybrid_layer_pattern": "P"}), 7) == sum(alone)
    kept = {symbol: layer_caches(read(SMALL | FIELDS | {"hybrid_layer_pattern": symbol}).shape)[0] for symbol in "M*P"}
    assert kept["P"] == [*kept["*"], *kept["M"]]
    assert [(cache.entries, cache.is_state) for cache in kept["M"]] == [(INNER * 5, True), (3 * CONVOLVED, False)]


@pytest.mark.parametrize("name", ["mamba", "attention_and_mamba"])
def test_what_runs_is_another_computation_everywhere(name):
    assert {MIXERS[name].executed(framework) for framework in FRAMEWORKS.values()} == {
        "mamba: its scan is counted as 7 FLOPs per token and entry of the state; what runs takes whole chunks, with products "
        "between the tokens of each, and its convolution the padding at both ends"
    }
