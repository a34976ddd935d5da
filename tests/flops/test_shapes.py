"""Fields and their ranges, and the sizes that follow from them."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.flops.shapes import (
    AudioShape,
    ByteLatentShape,
    ConfigError,
    DiffusionShape,
    ModelShape,
    StackShape,
    VisionShape,
    check,
    short,
    whole,
)

MOST = 10**15


@pytest.mark.parametrize(("value", "least"), [(1, 1), (MOST, 1), (0, 0), (2, 2)])
def test_whole_numbers(value, least):
    assert whole("model.x", value, least) == value


@pytest.mark.parametrize(
    ("value", "least", "message"),
    [
        (0, 1, "model.x=0 must be a positive integer"),
        (-1, 0, "model.x=-1 must be an integer of at least 0"),
        (1, 2, "model.x=1 must be an integer of at least 2"),
        (MOST + 1, 1, f"model.x={MOST + 1} must be a positive integer and at most {MOST}"),
        (True, 1, "model.x=True must be a positive integer"),
        (2.0, 1, "model.x=2.0 must be a positive integer"),
        ("2", 1, "model.x='2' must be a positive integer"),
        (None, 0, "model.x=None must be an integer of at least 0"),
    ],
)
def test_what_is_no_size(value, least, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        whole("model.x", value, least)


@given(st.lists(st.text(max_size=30) | st.integers() | st.none(), max_size=6))
@settings(max_examples=40)
def test_a_value_in_a_sentence_is_one_line_and_short(value):
    text = short(value)
    assert len(text) <= 80
    assert text.splitlines() == [text]


def test_where_a_value_is_cut():
    assert short("x" * 78) == repr("x" * 78)  # 80 with its quotes
    assert short("x" * 79) == "'" + "x" * 76 + "..."
    assert short(10**5000) == "<int>"
    endless: list = []
    endless.append(endless)
    assert short(endless) == "[[...]]"


# ---- ranges ----------------------------------------------------------------------------------------------------------


def checked(kind=ModelShape, **fields):
    shape = kind(**fields)
    check(shape, "model.")
    return shape


def test_zero_says_the_same_as_nothing_where_a_feature_is_off():
    for kind in (ModelShape, VisionShape, DiffusionShape, AudioShape, StackShape, ByteLatentShape):
        needed = {"num_hidden_layers": 1, "hidden_size": 1, "num_attention_heads": 1} if kind is StackShape else {}
        for item in dataclasses.fields(kind):
            if item.metadata.get("off"):
                found = getattr(checked(kind, **needed | {item.name: 0}), item.name)
                assert found is None, item.name


def test_the_smallest_value_of_every_size_and_the_one_below():
    """One below the smallest is refused with the field's name, whichever shape it stands in."""
    used = {
        "num_moe_experts": 2, "multi_latent_attention": True, "linear_attention_freq": 2, "is_hybrid_model": True,
        "gated_delta_product": True, "kimi_kda_layers": [1], "short_conv_layers": [1], "selective_scan_layers": [1],
    }  # fmt: skip
    for kind, more in ((ModelShape, used), (VisionShape, {}), (DiffusionShape, {}), (AudioShape, {}), (ByteLatentShape, {})):
        for item in dataclasses.fields(kind):
            least = item.metadata.get("least")
            if least is None:
                continue
            fields = more | {item.name: least}
            if not (item.metadata["off"] and least == 0):
                assert getattr(checked(kind, **fields), item.name) == least
            with pytest.raises(ConfigError, match=rf"^model\.{item.name}={least - 1} must be "):
                checked(kind, **more | {item.name: least - 1})


def test_what_is_not_used_is_not_checked():
    assert checked(moe_router_topk=-3).moe_router_topk == -3
    with pytest.raises(ConfigError, match="moe_router_topk=-3"):
        checked(moe_router_topk=-3, num_moe_experts=4)
    # Switches are looked at before sizes: 0 experts are none.
    assert checked(moe_router_topk=-3, num_moe_experts=0).num_moe_experts is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gated_linear_unit": 2}, "model.gated_linear_unit=2 must be true or false"),
        ({"normalization": True}, "model.normalization=True must be text"),
        # Switches before the sizes that they decide on: what ``in`` a number means no size is asked.
        ({"hybrid_layer_pattern": 5}, "model.hybrid_layer_pattern=5 must be text"),
        ({"rotary_percent": "half"}, "model.rotary_percent='half' must be a number"),
        ({"rotary_percent": True}, "model.rotary_percent=True must be a number"),
        ({"kimi_kda_layers": {1: 2}}, "model.kimi_kda_layers={1: 2} must be a list of whole numbers"),
        ({"recompute_modules": [1]}, "model.recompute_modules=[1] must be a list of words"),
    ],
)
def test_values_of_another_kind(fields, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        checked(**fields)


def test_flags_may_be_written_as_numbers():
    shape = checked(gated_linear_unit=1, is_causal=0)
    assert (shape.gated_linear_unit, shape.is_causal) == (True, False)
    assert checked(rotary_percent=1).rotary_percent == 1


# ---- what follows ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 300), st.integers(1, 16))
def test_the_vocabulary_is_padded_to_the_next_multiple(size, multiple, ranks):
    shape = ModelShape(vocab_size=size, make_vocab_size_divisible_by=multiple, tensor_model_parallel_size=ranks)
    step = multiple * ranks
    assert shape.built_vocab_size in range(size, size + step)
    assert shape.built_vocab_size % step == 0
    assert dataclasses.replace(shape, should_pad_vocab=False).built_vocab_size == size
    assert dataclasses.replace(shape, padded_vocab_size=size + 1).built_vocab_size == size + 1


@pytest.mark.parametrize(
    ("given", "tokens"),
    [(None, 0), (0, 0), (-1, 0), (1, 1), (128, 128), ((127, 0), 128), ([0, 0], 1), ((-1, 0), 0), ((3, -1), 4), ((3, 2), 6)],
)
def test_tokens_of_a_window(given, tokens):
    assert ModelShape(window_size=given).window == tokens


def test_sizes_that_are_not_given():
    shape = ModelShape(hidden_size=48, num_attention_heads=6)
    assert (shape.head_size, shape.key_value_heads, shape.ffn_size) == (8, 6, 192)
    shape = ModelShape(hidden_size=48, num_attention_heads=6, kv_channels=32, num_query_groups=2, ffn_hidden_size=0)
    assert (shape.head_size, shape.key_value_heads, shape.ffn_size) == (32, 2, 0)


def test_the_name_of_an_activation():
    functional = pytest.importorskip("torch.nn.functional")
    assert ModelShape().activation == "gelu"
    assert ModelShape(gated_linear_unit=True).activation == "silu"
    assert ModelShape(gated_linear_unit=True, activation_func=functional.gelu).activation == "gelu"
    assert ModelShape(activation_func="squared_relu").activation == "squared_relu"


@pytest.mark.parametrize(
    ("fields", "latents", "keys"),
    [
        ({}, False, False),
        ({"multi_latent_attention": True}, True, True),
        ({"kimi_kda_layers": [1]}, True, True),
        ({"experimental_attention_variant": "dsa"}, True, True),
        ({"experimental_attention_variant": "dsv4_hybrid"}, True, False),
        ({"experimental_attention_variant": "gdn"}, False, False),
    ],
)
def test_latent_attention_somewhere(fields, latents, keys):
    shape = ModelShape(**fields)
    assert (shape.has_latents, shape.has_latent_keys) == (latents, keys)


def test_delta_nets_by_frequency_or_symbol():
    assert [ModelShape(**fields).has_delta_net for fields in (
        {}, {"linear_attention_freq": 4}, {"hybrid_layer_pattern": "M*-"}, {"hybrid_layer_pattern": "MG"},
    )] == [False, True, False, True]  # fmt: skip
    assert [ModelShape(**fields).is_hybrid for fields in (
        {}, {"is_hybrid_model": True}, {"hybrid_layer_pattern": "M"}, {"hybrid_layer_pattern": ""},
    )] == [False, True, True, False]  # fmt: skip


def test_a_vision_tower():
    tower = VisionShape(hidden_size=96, num_heads=16)
    assert (tower.heads, tower.mlp_size, tower.gated, tower.activation, tower.window_patches) == (16, 384, False, "gelu", 0)
    assert VisionShape(hidden_size=96, num_heads=7).heads == VisionShape(hidden_size=96, num_heads=0).heads == 1
    assert VisionShape(hidden_size=96, intermediate_size=100).mlp_size == 100
    assert VisionShape(hidden_act="silu").gated
    assert VisionShape(hidden_act="gelu_pytorch_tanh").activation == "gelu_tanh"
    assert VisionShape(hidden_act="quick_gelu").activation == "quick_gelu"


@given(st.integers(1, 400), st.integers(1, 4), st.integers(1, 20))
def test_windows_of_a_tower_hold_whole_merged_patches(pixels, merge, patch):
    """As many merged patches along a side as fit, each merge x merge patches."""
    tower = VisionShape(window_size=pixels, spatial_merge_size=merge, patch_size=patch)
    side = max(n for n in range(pixels + 1) if n * merge * patch <= pixels)
    assert tower.window_patches == (side * merge) ** 2


def test_a_byte_latent_model():
    shape = ByteLatentShape(encoder_hash_byte_group_size=(3, 4, 5), encoder_hash_byte_group_nb_functions=2)
    assert shape.hash_tables == 6
    assert list(shape.stacks) == ["encoder_config", "global_config", "decoder_config", "patcher_config"]
    assert list(ByteLatentShape(patcher_config=None).stacks) == ["encoder_config", "global_config", "decoder_config"]
    assert ByteLatentShape().encoder_config is not ByteLatentShape().encoder_config


# A mutant that nothing tells apart: other lengths in ``encoder_hash_byte_group_size``, of which only the number costs anything.
