"""Which layer, not how many: windows, chunks, RoPE, MoE, linear attention, hybrid patterns, multi-token prediction."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.heterogeneous import Block
from bridge.flops.layer_pattern import Layer, _with_block, decoder_layers, hybrid_patterns, mtp_depths, pattern_from_ratios
from bridge.flops.reading import read
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import CAUSAL, Context
from tests.flops.published import MODELS, full_config

SMALL = {"num_layers": 6, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 16, "ffn_hidden_size": 12}
MAMBA = {"mamba_num_heads": 2, "mamba_head_dim": 8, "mamba_state_dim": 4, "mamba_num_groups": 1}
WINDOW = Context("window", (3,))
CHUNK = Context("chunk", (3,))


def shape(**fields: Any) -> ModelShape:
    return read(SMALL | fields).shape


def layers(**fields: Any) -> list[Layer]:
    return decoder_layers(shape(**fields))


def where(values: list[Any], wanted: Any) -> list[int]:
    """Numbers (from 1) of the layers with this value."""
    return [number for number, value in enumerate(values, 1) if value == wanted]


def contexts(**fields: Any) -> list[Context]:
    return [layer.context for layer in layers(**fields)]


# ---- by number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({"window_size": 3}, [1, 2, 3, 4, 5, 6]),
        ({"window_size": [2, 0]}, [1, 2, 3, 4, 5, 6]),
        ({"window_size": 3, "window_attn_skip_freq": 2}, [1, 3, 5]),
        ({"window_size": 3, "window_attn_skip_freq": 3}, [1, 2, 4, 5]),
        ({"window_size": 3, "window_attn_skip_freq": 1}, []),
        ({"window_size": 3, "window_attn_skip_freq": [0, 1, 1, 0, 0, 1]}, [2, 3, 6]),
        ({"window_size": 3, "interleaved_attn_pattern": [2, 1]}, [1, 2, 4, 5]),
        ({"window_size": 3, "interleaved_attn_pattern": [5, 1]}, [1, 2, 3, 4, 5]),
        ({"window_attn_skip_freq": 2}, []),
        ({"window_size": [-1, 0]}, []),
    ],
)
def test_windows(fields, local):
    found = contexts(**fields)
    assert where(found, WINDOW) == local
    assert where(found, CAUSAL) == [number for number in range(1, 7) if number not in local]
    # The others are global ones only where there are local ones.
    assert [layer.is_global for layer in layers(**fields)] == [bool(local) and context == CAUSAL for context in found]


@pytest.mark.parametrize(
    ("freq", "without"), [(None, []), (4, [4]), (2, [2, 4, 6]), ([1, 0, 0, 0, 0, 1], [1, 6]), (1, [1, 2, 3, 4, 5, 6])]
)
def test_layers_without_rope_are_those_that_are_not_chunked(freq, without):
    plain = layers(no_rope_freq=freq)
    assert where([layer.rotates for layer in plain], False) == without
    assert {layer.context for layer in plain} == {CAUSAL}
    chunked = layers(no_rope_freq=freq, attention_chunk_size=3)
    assert where([layer.context for layer in chunked], CAUSAL) == without
    assert where([layer.context for layer in chunked], CHUNK) == [number for number in range(1, 7) if number not in without]


def test_the_work_of_each_stage_tells_chunked_layers_from_global_ones():
    """Four stages of one layer; chunks of 4 in a sequence of 10; layers 2 and 4 see everything.  Forward, in FLOPs."""
    model = SMALL | {"num_layers": 4, "attention_chunk_size": 4, "no_rope_freq": 2}
    plan = compile_plan(model, "exact")
    linear = 2 * 10 * (8 * 24 + 8 * 8 + 2 * 8 * 12)
    pairs, chunked = 10 * 11 // 2, 2 * (4 * 5 // 2) + 2 * 3 // 2
    one = {name: linear + 2 * 2 * 8 * count for name, count in {"global": pairs, "chunked": chunked}.items()}
    assert one == {"global": 10720, "chunked": 9696}
    expected = [one["chunked"], one["global"], one["chunked"], one["global"] + 2 * 10 * 8 * 16]
    assert plan.evaluate_stages(plan.measure([10]), 4, passes="forward") == expected


@pytest.mark.parametrize(
    ("freq", "moe"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (3, [1, 4]), (7, [1]), ([0, 1, 0, 0, 1, 1], [2, 5, 6])]
)
def test_moe(freq, moe):
    """An integer counts layers from 0, so that the first is always MoE."""
    channels = [layer.channel for layer in layers(num_moe_experts=4, moe_layer_freq=freq)]
    assert where(channels, "moe") == moe
    assert where(channels, "mlp") == [number for number in range(1, 7) if number not in moe]
    assert {layer.channel for layer in layers(moe_layer_freq=freq)} == {"mlp"}


@pytest.mark.parametrize(("freq", "attention"), [(2, [2, 4, 6]), (4, [4]), ([1, 0, 1, 1, 0, 1], [2, 5])])
@pytest.mark.parametrize(("latent", "ordinary"), [(False, "attention"), (True, "mla")])
def test_linear_attention(freq, attention, latent, ordinary):
    """An integer counts from 1: every Nth layer is attention; in a list 1 is linear."""
    options = {"experimental_attention_variant": "gdn", "linear_attention_freq": freq, "multi_latent_attention": latent}
    mixers = [layer.mixer for layer in layers(**options)]
    assert where(mixers, ordinary) == attention
    assert where(mixers, "gdn") == [number for number in range(1, 7) if number not in attention]


def test_kimi_layers_are_numbered_from_one():
    options = {"kimi_kda_layers": [1, 2, 5], "kimi_linear_num_heads": 2, "kimi_linear_head_dim": 4}
    mixers = [layer.mixer for layer in layers(multi_latent_attention=True, **options)]
    assert mixers == ["kda", "kda", "mla", "mla", "kda", "mla"]


def test_the_last_layers_share_keys_and_values():
    assert where([layer.shares_kv for layer in layers(num_kv_shared_layers=2)], True) == [5, 6]


# ---- hybrid patterns -------------------------------------------------------------------------------------------------


def hybrid(pattern: str, **fields: Any) -> list[Layer]:
    return layers(num_layers=None, hybrid_layer_pattern=pattern, num_moe_experts=4, **MAMBA, **fields)


def test_symbols():
    found = [(layer.mixer, layer.channel) for layer in hybrid("M*-EGDP+")]
    assert found == [
        ("mamba", ""), ("attention", ""), ("", "mlp"), ("", "moe"), ("gdn", ""), ("dsa", ""), ("attention_and_mamba", ""),
        ("mla", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "fields", "mixers"),
    [
        ("M*", {}, ["mamba", "attention"]),
        ("M*", {"multi_latent_attention": True}, ["mamba", "mla"]),
        ("M*", {"multi_latent_attention": True, "hybrid_mla_symbol": "+"}, ["mamba", "attention"]),
        ("M+", {}, ["mamba", "mla"]),
        # A pattern that has a symbol for MLA means something else by the other.
        ("+*", {"multi_latent_attention": True}, ["mla", "attention"]),
    ],
)
def test_which_symbol_is_latent_attention(pattern, fields, mixers):
    assert [layer.mixer for layer in hybrid(pattern, **fields)] == mixers


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({"window_size": 3}, [1, 2, 3, 4, 5, 6]),
        ({"window_size": 3, "window_attn_skip_freq": 3}, [1, 2, 4, 5]),
        ({"window_size": 3, "window_attn_skip_freq": [0, 1, 0, 0, 0, 1]}, [2, 6]),
    ],
)
def test_windows_of_hybrid_layers_go_by_their_number_among_all_layers(fields, local):
    found = hybrid("M*-|M**", **fields)
    assert where([layer.context for layer in found], WINDOW) == local
    assert [layer.number for layer in found] == [1, 2, 3, 4, 5, 6]


def test_a_window_in_a_hybrid_model_by_hand():
    """One of two attention layers has a window of 128 in a sequence of 1024, as layer 2 of every second."""
    model = SMALL | MAMBA | {"num_layers": None, "hybrid_layer_pattern": "*-M*", "window_size": 128, "window_attn_skip_freq": 2}
    pairs, windowed = 1024 * 1025 // 2, 1024 * 1025 // 2 - 896 * 897 // 2
    core = compile_plan(model, "exact").breakdown([1024], passes="forward")["core_attention"]
    assert core == 4 * 8 * (windowed + pairs) == 4 * 8 * (122944 + 524800)


@pytest.mark.parametrize(
    ("fields", "patterns"),
    [
        ({"hybrid_layer_pattern": "M*-M"}, ["M*-M"]),
        ({"hybrid_layer_pattern": "M|*-|M"}, ["M*-M"]),
        ({"hybrid_layer_pattern": "M*-M/*-/*-"}, ["M*-M", "*-", "*-"]),
        ({"hybrid_layer_pattern": "M*-M/*-", "mtp_num_layers": 3}, ["M*-M", "*-", "*-", "*-"]),
        ({"hybrid_layer_pattern": "M*-M/*-/M", "mtp_num_layers": 2}, ["M*-M", "*-", "M"]),
        ({"hybrid_layer_pattern": "M*-M/"}, ["M*-M"]),
        ({"hybrid_layer_pattern": "M*-M", "mtp_hybrid_override_pattern": "*-", "mtp_num_layers": 2}, ["M*-M", "*-", "*-"]),
        ({"hybrid_layer_pattern": "M*-M", "mtp_hybrid_override_pattern": "*-"}, ["M*-M"]),
        # As Megatron-Bridge leaves them: joined, and the parts still there.
        (
            {"hybrid_layer_pattern": "M*-M/*-/*-", "mtp_hybrid_override_pattern": "*-", "mtp_num_layers": 2},
            ["M*-M", "*-", "*-"],
        ),
        ({"hybrid_layer_pattern": "M*-M", "mtp_num_layers": 2}, ["M*-M"]),
    ],
)
def test_patterns_of_the_decoder_and_of_the_depths(fields, patterns):
    assert hybrid_patterns(shape(num_layers=4, **MAMBA, **fields)) == patterns


def test_depths_without_a_pattern_are_named_and_not_priced():
    model = SMALL | MAMBA | {"num_layers": 4, "hybrid_layer_pattern": "M*-M"}
    plan = compile_plan(model | {"mtp_num_layers": 2}, "exact")
    assert plan.not_counted == ("mtp_num_layers=2: a hybrid model needs a pattern for them",)
    assert plan.flops([7]) == compile_plan(model, "exact").flops([7])


def test_two_fields_are_one_pattern():
    model = SMALL | MAMBA | {"num_layers": None, "num_moe_experts": 4, "mtp_num_layers": 2}
    two = compile_plan(model | {"hybrid_layer_pattern": "MEM*E", "mtp_hybrid_override_pattern": "*E"})
    one = compile_plan(model | {"hybrid_layer_pattern": "MEM*E/*E/*E"})
    assert two.terms == one.terms


def test_a_depth_of_a_hybrid_model_numbers_its_layers_anew():
    fields = {"window_size": 3, "window_attn_skip_freq": [0, 1, 1, 1], "hybrid_layer_pattern": "M*-M/**"}
    ((first, second),) = mtp_depths(shape(num_layers=4, **MAMBA, **fields))
    assert (first.number, first.context) == (1, CAUSAL)
    assert (second.number, second.context) == (2, WINDOW)


def test_ratios_are_spread_as_megatron_core_spreads_them():
    allocation = pytest.importorskip("megatron.core.ssm.mamba_hybrid_layer_allocation")
    for count in range(1, 60):
        for attention, mlp in (
            (0.0, 0.0),
            (0.1, 0.0),
            (0.08, 0.5),
            (0.25, 0.25),
            (0.5, 0.5),
            (0.3, 0.6),
            (0.0, 0.45),
            (1.0, 0.0),
        ):
            pattern = pattern_from_ratios(
                ModelShape(num_layers=count, hybrid_attention_ratio=attention, hybrid_mlp_ratio=mlp, is_hybrid_model=True)
            )
            assert list(pattern) == allocation.allocate_layers(count, attention, mlp), (count, attention, mlp)
            wanted = round(count * attention), round(count * mlp)
            if sum(wanted) <= count:
                assert (pattern.count("*"), pattern.count("-")) == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hybrid_layer_pattern": "M*x"}, "model.hybrid_layer_pattern has the symbol 'x'; known are "),
        ({"hybrid_layer_pattern": "M*/M|*"}, "model.hybrid_layer_pattern has the symbol '|'"),
        ({"hybrid_layer_pattern": "M*", "num_layers": 3}, "has 2 layers, but model.num_layers=3: make them agree"),
        ({"hybrid_layer_pattern": "M*", "window_size": 3, "window_attn_skip_freq": [1]}, "window_attn_skip_freq has 1 entries"),
    ],
)
def test_patterns_that_cannot_be(fields, message):
    with pytest.raises(ConfigError) as caught:
        compile_plan(SMALL | MAMBA | {"num_layers": None} | fields)
    assert message in str(caught.value)


# ---- multi-token prediction --------------------------------------------------------------------------------------------


def test_depths_are_of_the_decoders_last_kind():
    options = {"num_moe_experts": 4, "moe_layer_freq": [0, 0, 0, 0, 0, 1], "window_size": 3, "window_attn_skip_freq": 5}
    (first,), (second,) = mtp_depths(shape(mtp_num_layers=2, **options))
    assert (first.mixer, first.channel, first.context, first.number) == ("attention", "moe", WINDOW, 1)
    assert (second.mixer, second.channel, second.context, second.number) == ("attention", "moe", WINDOW, 2)


def test_compressed_keys_of_each_layer_and_depth():
    fields = {
        "experimental_attention_variant": "dsv4_hybrid",
        "csa_compress_ratios": [0, 4, 128, 4, 0, 4, 128],
        "mtp_num_layers": 1,
    }
    found = shape(**fields)
    assert [layer.form for layer in decoder_layers(found)] == [0, 4, 128, 4, 0, 4]
    assert [[layer.form for layer in depth] for depth in mtp_depths(found)] == [[128]]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gemma3-4b", [6, 12, 18, 24, 30]),
        ("gpt-oss-20b", list(range(2, 25, 2))),
        ("llama4-scout-17b-16e", list(range(4, 49, 4))),
        ("qwen3-next-80b-a3b", list(range(4, 49, 4))),
    ],
)
def test_published_models(name, full):
    """The layers that see everything, as their authors number them."""
    found = decoder_layers(read(full_config(MODELS[name])).shape)
    assert where([layer.context == CAUSAL and layer.mixer == "attention" for layer in found], True) == full


def test_a_block_replaces_what_it_names():
    layer = Layer(1, "self_attention", "mlp")
    own, block = _with_block(layer, Block()), _with_block(layer, Block("linear", "", 2, 24))
    assert (own.mixer, own.channel, own.num_query_groups, own.ffn_hidden_size) == ("self_attention", "mlp", 0, 0)
    assert (block.mixer, block.channel, block.num_query_groups, block.ffn_hidden_size) == ("linear", "", 2, 24)


# A mutant that nothing tells apart: ``zip`` that is not strict, since every list was held against ``num_layers`` before.
