"""Every row is found, no name or symbol stands twice, and every table has all of them."""

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.components import registry
from bridge.flops.layer_pattern import decoder_layers, mtp_depths
from bridge.flops.reading import read
from bridge.flops.rows import Cache
from bridge.report.colours import COLOURS, PALETTE

SMALL = {"num_layers": 6, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
LATENT = {"q_lora_rank": 12, "kv_lora_rank": 20, "qk_head_dim": 8, "qk_pos_emb_head_dim": 4, "v_head_dim": 6}


def test_symbols():
    found = {symbol: row.name for symbol, row in registry.SYMBOLS.items()}
    assert found == {
        "*": "attention", "+": "mla", "M": "mamba", "P": "attention_and_mamba", "G": "gdn", "D": "dsa", "-": "mlp", "E": "moe",
    }  # fmt: skip
    rows = (*registry.MIXERS.values(), *registry.CHANNELS.values())
    assert len(found) == sum(bool(row.symbol) for row in rows)


def test_variants():
    assert sorted(registry.VARIANTS) == ["dsa", "dsv4_hybrid", "gated_delta_net", "gdn", "gdn2"]


def test_an_unknown_variant_is_named_and_keeps_its_channel_mixers():
    plan = compile_plan(SMALL | {"experimental_attention_variant": "retention"}, "exact")
    assert plan.not_counted == ("experimental_attention_variant='retention': this attention is not counted",)
    assert plan.breakdown([10], passes="forward") == {"mlp": 2 * 10 * 6 * 2 * 64 * 256, "output_layer": 2 * 10 * 64 * 100}


def test_a_field_that_a_variant_requires_is_named():
    with pytest.raises(ConfigError) as error:
        read(SMALL | LATENT | {"kimi_kda_layers": [1, 2, 4], "kimi_linear_num_heads": 4})
    assert str(error.value) == (
        "model.kimi_linear_head_dim is missing: set it to a positive integer (kimi_kda_layers=[1, 2, 4] needs it)"
    )


def test_colours():
    lines = {line for kind in (registry.MIXERS, registry.CHANNELS, registry.PROJECTORS, registry.PARTS)
             for row in kind.values() for line in row.colour}  # fmt: skip
    assert lines == registry.COLOURS.keys() <= COLOURS.keys()
    assert set(COLOURS.values()) <= set(PALETTE.values())
    assert (COLOURS["mlp"], COLOURS["mamba"], COLOURS["adapters"]) == ("#0072b2", "#56b4e9", "#d55e00")


@pytest.mark.parametrize(
    ("fields", "mixers", "forms"),
    [
        ({}, ["attention"] * 6, [0] * 6),
        ({"multi_latent_attention": True}, ["mla"] * 6, [0] * 6),
        ({"experimental_attention_variant": "gated_delta_net", "linear_attention_freq": 3},
         ["gdn", "gdn", "attention", "gdn", "gdn", "attention"], [0] * 6),
        ({"kimi_kda_layers": [1, 2, 4], "kimi_linear_num_heads": 4, "kimi_linear_head_dim": 16},
         ["kda", "kda", "mla", "kda", "mla", "mla"], [0] * 6),
        # Whether the layer chooses keys: 1, 2, then every third.
        ({"experimental_attention_variant": "dsa", "dsa_indexer_topk_freq": 3, "dsa_indexer_skip_topk_offset": 2},
         ["dsa"] * 6, [1, 1, 0, 0, 1, 0]),
        ({"experimental_attention_variant": "dsv4_hybrid", "csa_compress_ratios": [0, 4, 128, 4, 0, 4]},
         ["dsv4"] * 6, [0, 4, 128, 4, 0, 4]),
        ({"hybrid_layer_pattern": "M*-PDG", "multi_latent_attention": True},
         ["mamba", "mla", "", "attention_and_mamba", "dsa", "gdn"], [0, 0, 0, 0, 1, 0]),
    ],
)  # fmt: skip
def test_which_mixer_stands_where(fields, mixers, forms):
    layers = decoder_layers(read(SMALL | LATENT | fields).shape)
    assert [layer.mixer for layer in layers] == mixers
    assert [layer.form for layer in layers] == forms


def test_forms_of_mtp_layers_are_counted_apart():
    fields = {
        "experimental_attention_variant": "dsv4_hybrid",
        "mtp_num_layers": 2,
        "csa_compress_ratios": [0, 4, 128, 4, 0, 4, 128, 0],
    }
    assert [layer.form for (layer,) in mtp_depths(read(SMALL | LATENT | fields).shape)] == [128, 0]
    fields = {"experimental_attention_variant": "dsa", "mtp_num_layers": 2, "dsa_indexer_topk_freq": 2}
    assert [layer.form for (layer,) in mtp_depths(read(SMALL | LATENT | fields).shape)] == [1, 0]


def test_a_wrong_ratio_is_refused():
    fields = {"experimental_attention_variant": "dsv4_hybrid", "csa_compress_ratios": [0, 4, 128, 4, 0, 5]}
    with pytest.raises(ConfigError, match="has the ratio 5: it must be one of"):
        compile_plan(SMALL | LATENT | fields)


def test_caches():
    """What a layer of every mixer keeps per token, by hand."""
    sizes = LATENT | {
        "num_query_groups": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 10, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_attention_freq": 2, "kimi_linear_num_heads": 3, "kimi_linear_head_dim": 7,
        "mamba_state_dim": 16, "mamba_head_dim": 8, "mamba_num_groups": 2, "dsa_indexer_head_dim": 9, "dsa_indexer_topk": 5,
        "hybrid_layer_pattern": "M*PDG-",
    }  # fmt: skip
    shape = read(SMALL | sizes).shape
    layers = {layer.mixer: layer for layer in decoder_layers(shape)}
    inner = 128  # twice the width
    mamba = [("state", inner * 16), ("convolution_inputs", 3 * (inner + 2 * 2 * 16))]
    expected = {
        "attention": [("keys_and_values", 2 * 2 * 16)],
        "mamba": mamba,
        "attention_and_mamba": [("keys_and_values", 2 * 2 * 16), *mamba],
        "dsa": [("latents", 24), ("indexer_keys", 9)],
        "gdn": [("state", 8 * 40), ("convolution_inputs", 3 * (2 * 16 + 40))],
    }

    def kept(caches: list[Cache]) -> list[tuple[str, int]]:
        return [(cache.name, cache.entries) for cache in caches]

    found = {name: kept(registry.MIXERS[name].cache(shape, layers[name])) for name in expected}
    assert found == expected
    assert kept(registry.MIXERS["mla"].cache(shape, layers["attention"])) == [("latents", 24)]
    assert kept(registry.MIXERS["kda"].cache(shape, layers["attention"])) == [
        ("state", 3 * 49), ("convolution_inputs", 3 * 63),
    ]  # fmt: skip
