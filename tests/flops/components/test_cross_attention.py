"""Cross attention beside transformers' own: Whisper's with its missing key bias, T5Gemma's with fewer key heads."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaCrossAttention
from transformers.models.whisper.modeling_whisper import WhisperAttention

from bridge.flops import compile_plan
from bridge.flops.components.cross_attention import cross_attention
from bridge.flops.reading import read
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, executed, priced

ASKED, TOLD = [5, 3], [4, 9]
LENGTHS = {"sequence_lengths": ASKED, "encoder_lengths": TOLD}


def pairs(hidden_size, encoder_hidden_size):
    return [(torch.zeros(1, s, hidden_size), torch.zeros(1, t, encoder_hidden_size)) for s, t in zip(ASKED, TOLD, strict=True)]


def test_whisper():
    config = WhisperConfig(d_model=12, decoder_attention_heads=4, attn_implementation="eager")
    module = WhisperAttention(12, 4, is_decoder=True, layer_idx=0, config=config)
    terms = cross_attention(
        hidden_size=12, encoder_hidden_size=12, num_attention_heads=4, num_query_groups=4, kv_channels=3, fused=False,
        qkv_bias=True, key_bias=False, proj_bias=True,
    )  # fmt: skip
    run = executed(module, lambda: torch.cat([module(query, key)[0] for query, key in pairs(12, 12)], 1))
    assert priced(terms, **LENGTHS) == run


@pytest.mark.parametrize("bias", [False, True])
def test_fewer_key_heads_and_an_encoder_of_another_width(bias):
    config = T5GemmaModuleConfig(
        hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, attention_bias=bias,
        attention_dropout=0.0,
    )  # fmt: skip
    config.cross_attention_hidden_size, config._attn_implementation = 7, "eager"
    module = T5GemmaCrossAttention(config, 0)
    sizes = {
        "hidden_size": 12, "encoder_hidden_size": 7, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 6,
        "qkv_bias": bias, "proj_bias": bias,
    }  # fmt: skip
    run = executed(module, lambda: torch.cat([module(query, None, key)[0] for query, key in pairs(12, 7)], 1))
    assert priced(cross_attention(**sizes, fused=False), **LENGTHS) == run
    # One matmul for keys and values, as megatron-core has it, is the same work.
    assert priced(cross_attention(**sizes), **LENGTHS) == run


def test_norms_over_heads_are_parameters_and_need_a_gradient():
    sizes = {"hidden_size": 12, "encoder_hidden_size": 7, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 5}
    plain, normed = (priced(cross_attention(**sizes, head_norm=norm), **LENGTHS) for norm in (False, True))
    assert (normed[0], normed[2]) == (plain[0], plain[2] + 2 * 5)
    assert normed[1] == plain[1]  # what is normed trains all the same


def test_no_encoder_input_is_no_work_but_the_queries():
    sizes = {"hidden_size": 12, "encoder_hidden_size": 7, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 5}
    both = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12)])
    found = priced(cross_attention(**sizes), sequence_lengths=[5], encoder_lengths=[0])[0]
    assert found == 2 * 5 * sum(layer.in_features * layer.out_features for layer in both)


def test_keys_and_values_of_the_encoder_are_kept():
    """4 heads of 3 for both, of the decoder's own and of the encoder's tokens."""
    fields = {"num_layers": 2, "encoder_num_layers": 1}
    own, crossed = layer_caches(read(SMALL | fields).shape)[1]
    assert (own.entries, crossed.name, crossed.entries) == (24, "cross_keys_and_values", 24)
    assert (crossed.kept.shape, crossed.kept.over) == ("bidirectional", "encoder")


@pytest.mark.parametrize(
    ("fields", "queries", "pair", "out"),
    [
        ({}, 0, 0, 0),
        ({"add_qkv_bias": True}, 12, 24, 0),
        ({"add_proj_bias": True}, 0, 0, 12),
        ({"add_bias_linear": True}, 12, 24, 12),
        ({"add_bias_linear": True, "add_key_bias": False}, 12, 12, 12),
    ],
)
def test_the_biases_of_a_model(fields, queries, pair, out):
    found = compile_plan(SMALL | {"encoder_num_layers": 1} | fields, "exact").parameters_by_module()
    names = [f"decoder.layers.0.cross_attention.linear_{name}" for name in ("q", "kv", "proj")]
    assert [found[name] for name in names] == [12 * 12 + queries, 2 * 12 * 12 + pair, 12 * 12 + out]
