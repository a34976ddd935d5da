"""The gated short convolution beside LFM2's."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from bridge.flops.components.short_convolution import short_convolution
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.flops.terms import Kind
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, executed, in_layer, macs, priced

FIELDS = {"short_conv_layers": [1]}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("taps", "tokens"), [(1, 4), (3, 1), (3, 7), (4, 7)])
def test_lfm2(taps, tokens, bias):
    """What runs has the padding of both ends in it."""
    config = Lfm2Config(
        hidden_size=12, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=taps, conv_bias=bias, num_attention_heads=4
    )
    module = Lfm2ShortConv(config, 0)
    terms = in_layer(FIELDS | {"short_conv_kernel": taps, "short_conv_bias": bias})
    run = executed(module, lambda: module(torch.zeros(2, tokens, 12)))
    assert priced(terms, sequence_lengths=[tokens] * 2) == run


@pytest.mark.parametrize("convention", ["exact", "maxtext", "megatron"])
def test_other_conventions_count_a_tap_for_each_token(convention):
    terms = in_layer(FIELDS | {"short_conv_kernel": 4}, convention=convention)
    assert macs([term for term in terms if term.kind is Kind.CONVOLUTION], 7, convention) == 7 * 4 * 12


def test_a_gate_before_and_a_gate_behind():
    terms = short_convolution(hidden_size=12, kernel=3, bias=False)
    gates = {term.name: term.operations.multiplications for term in terms if term.kind is Kind.ELEMENTWISE}
    assert gates == {"input_gate": 12, "output_gate": 12}


def test_layers_and_what_they_keep():
    shape = read(SMALL | {"num_layers": 3, "short_conv_layers": [1, 0, 1], "short_conv_kernel": 4}).shape
    assert [layer.mixer for layer in decoder_layers(shape)] == ["short_convolution", "attention", "short_convolution"]
    assert [[(cache.entries, cache.is_state) for cache in layer] for layer in layer_caches(shape)] == [
        [(3 * 12, False)], [(2 * 4 * 3, False)], [(3 * 12, False)],
    ]  # fmt: skip
