"""What a block is built from: sizes as the convention takes them, and the words for what a mixer cannot do without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.flops import ConfigError
from bridge.flops.build import ROTARY, Build, Layer, required
from bridge.flops.conventions import CONVENTIONS, EXACT
from bridge.flops.elementwise import NOTHING, SIGMOID, Operations
from bridge.flops.frameworks import FRAMEWORKS, MEGATRON
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import CAUSAL

SHAPE = ModelShape(hidden_size=48, num_attention_heads=6, vocab_size=1000, tensor_model_parallel_size=2)


def build(convention=EXACT, framework=MEGATRON, **fields):
    return Build(replace(SHAPE, **fields), convention, framework)


def test_sizes_are_the_models():
    assert (build().hidden_size, build().heads) == (48, 6)
    assert build(hidden_size=64, num_attention_heads=2).hidden_size == 64
    assert {name for name, framework in FRAMEWORKS.items() if build(framework=framework).fused} == {
        "megatron", "transformers_fused", "transformers_fused_reentrant",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "padded"),
    [
        ({}, 1024),  # a multiple of 128 x 2
        ({"vocab_size": 1024}, 1024),
        ({"vocab_size": 1025}, 1280),
        ({"make_vocab_size_divisible_by": 500}, 1000),
        ({"should_pad_vocab": False}, 1000),
        ({"padded_vocab_size": 1001}, 1001),
    ],
)
def test_the_output_layer_is_as_wide_as_the_convention_has_it(fields, padded):
    for name, convention in CONVENTIONS.items():
        knows_padding = name in ("megatron", "executed")
        assert build(convention, **fields).vocabulary == (padded if knows_padding else fields.get("vocab_size", 1000)), name


def test_norms_and_activations():
    assert [build(normalization=name).norm_bias for name in ("LayerNorm", "RMSNorm")] == [True, False]
    assert build(activation_func="silu").activation == SIGMOID
    assert build().activation == Operations(additions=1, multiplications=3, exponentiations=1)  # gelu without a gate
    assert build(gated_linear_unit=True).activation == SIGMOID
    assert build(activation_func="mish").activation == NOTHING


@pytest.mark.parametrize("percent", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("head_size", [64, 128])
def test_turned_channels_are_megatron_cores(percent, head_size):
    module = pytest.importorskip("megatron.core.models.common.embeddings.rotary_pos_embedding")
    theirs = module.RotaryEmbedding(head_size, percent, use_cpu_initialization=True)
    assert build(rotary_percent=percent).rotated(Layer(1, "attention", "mlp"), head_size) == 2 * theirs.inv_freq.numel()


def test_what_turns_nothing():
    layer = Layer(1, "attention", "mlp")
    assert [build(position_embedding_type=kind).rotated(layer, 8) for kind in ROTARY] == [8, 8, 8]
    assert [build(position_embedding_type=kind).rotated(layer, 8) for kind in ("learned_absolute", "none", "relative")] == [0] * 3
    assert build().rotated(replace(layer, rotates=False), 8) == 0
    assert build(rotary_percent=0.0).rotated(layer, 8) == 0


def test_layers_that_differ_in_their_number_alone_are_of_one_kind():
    one, other = Layer(1, "attention", "mlp"), Layer(7, "attention", "mlp")
    assert replace(one, number=0) == replace(other, number=0)
    assert len({replace(one, number=0), replace(other, number=0)}) == 1
    assert one != other
    assert (one.context, one.rotates, one.shares_kv, one.crosses, one.form, one.memory) == (CAUSAL, True, False, False, 0, 0)
    assert (one.num_query_groups, one.ffn_hidden_size, one.is_global) == (0, 0, False)  # the model's


@pytest.mark.parametrize(
    ("value", "what"),
    [(None, "is missing"), (0, "is 0"), (-1, "is -1"), (True, "is True"), (2.0, "is 2.0"), ("8", "is '8'")],
)
def test_a_field_that_a_mixer_cannot_do_without(value, what):
    shape = ModelShape(experimental_attention_variant="dsa", dsa_indexer_topk=value)
    with pytest.raises(ConfigError) as error:
        required(shape, "dsa_indexer_topk")
    assert str(error.value) == f"model.dsa_indexer_topk {what}: experimental_attention_variant='dsa' needs a positive integer"


def test_one_is_enough():
    assert required(ModelShape(dsa_indexer_topk=1), "dsa_indexer_topk") == 1
    with pytest.raises(ConfigError, match="experimental_attention_variant='' needs"):
        required(ModelShape(), "dsa_indexer_topk")
