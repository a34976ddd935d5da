"""megatron-core's configs from their real classes, and anything that uses their names."""

import dataclasses
from types import SimpleNamespace

import pytest
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from bridge.config.sources.megatron_core import audit
from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read

SIZES = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
MODEL = SIZES | {"vocab_size": 512, "ffn_hidden_size": 128}


@pytest.mark.parametrize("kind", [TransformerConfig, MLATransformerConfig])
def test_defaults_have_nothing_to_report(kind):
    found = audit(kind(**SIZES))
    assert (found.not_counted, found.hardware_unknown) == ([], [])


def test_a_field_away_from_its_default_is_named():
    found = audit(TransformerConfig(**SIZES, num_moe_experts=4, moe_expert_capacity_factor=2.0))
    assert found.not_counted == [
        "moe_expert_capacity_factor=2.0: tokens that experts drop are counted, padding that they add is not"
    ]
    again = dataclasses.make_dataclass("Config", [("moe_layer_recompute", bool, True)])()
    assert audit(again).hardware_unknown == ["moe_layer_recompute=True: its recomputation or padding is unknown"]


def test_a_field_that_is_its_default_is_not_named():
    kind = dataclasses.make_dataclass("Config", [("new_feature", int, 3)], bases=(TransformerConfig,), kw_only=True)
    assert audit(kind(**SIZES)).not_counted == []
    assert audit(kind(**SIZES, new_feature=4)).not_counted == ["not recognized: new_feature=4"]


@pytest.mark.parametrize("wrap", [dict, lambda fields: SimpleNamespace(**fields), lambda fields: {"model": fields}])
def test_a_misspelt_key_is_named(wrap):
    (sentence,) = compile_plan(wrap(MODEL | {"num_query_group": 2})).not_counted
    assert sentence == "not recognized: num_query_group=2; did you mean num_query_groups?"
    with pytest.raises(ConfigError, match="model.num_layers is missing"):
        compile_plan(wrap({k: v for k, v in MODEL.items() if k != "num_layers"} | {"num_layrs": 2}))


def test_far_names_get_no_hint():
    assert compile_plan(MODEL | {"colour": "red"}).not_counted == ("not recognized: colour='red'",)


def test_other_names_of_per_layer_embeddings():
    ours = compile_plan(MODEL | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300})
    theirs = compile_plan(MODEL | {"per_layer_embed_dim": 16, "per_layer_embed_vocab_size": 300})
    assert theirs.parameters() == ours.parameters() != compile_plan(MODEL).parameters()
    assert theirs.flops([100]) == ours.flops([100])


def test_a_class_with_attributes_is_read():
    kind = type("Settings", (), MODEL)
    assert compile_plan(kind()).flops([64]) == compile_plan(MODEL).flops([64])


@pytest.mark.parametrize(
    "off",
    [
        {"kv_lora_rank": 0, "qk_head_dim": 0}, {"num_moe_experts": 0, "moe_router_topk": 2}, {"moe_latent_size": 0},
        {"num_query_groups": 0}, {"kv_channels": 0}, {"mtp_num_layers": 0}, {"q_lora_rank": 0}, {"attention_chunk_size": 0},
        {"moe_shared_expert_intermediate_size": 0}, {"linear_num_key_heads": 0}, {"mamba_state_dim": 0},
        {"encoder_num_layers": 0},
    ],
)  # fmt: skip
def test_what_is_off_is_not_validated(off):
    assert compile_plan(MODEL | off).flops([100]) == compile_plan(MODEL).flops([100])


def test_no_inner_width_is_no_mlp():
    parts = compile_plan(MODEL | {"ffn_hidden_size": 0}).breakdown([100])
    assert parts == {name: flops for name, flops in compile_plan(MODEL).breakdown([100]).items() if name != "mlp"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_moe_experts": 4, "moe_shared_expert_intermediate_size": -100000},
         "model.moe_shared_expert_intermediate_size=-100000 must be an integer of at least 0"),
        ({"num_kv_shared_layers": 5}, "model.num_kv_shared_layers=5 is more than model.num_layers=2"),
        ({"mtp_num_layers": -1}, "model.mtp_num_layers=-1 must be an integer of at least 0"),
        ({"num_layers": None, "hybrid_layer_pattern": "MMEE"}, "model.num_moe_experts is missing"),
        ({"num_moe_experts": 2, "moe_router_topk": 3}, "model.moe_router_topk=3 is larger than model.num_moe_experts=2"),
        ({"kimi_kda_layers": [1, 3]}, "model.kimi_kda_layers has the layer 3"),
        ({"kimi_kda_layers": [0]}, "model.kimi_kda_layers has the layer 0"),
        ({"num_layers": 20_001}, "20001 layers are more than the maximum"),
        ({"num_layers": None, "hybrid_layer_pattern": "M*-" * 40_000}, "120000 layers are more than the maximum"),
        ({"hidden_size": 10**30}, "model.hidden_size=1000000000000000000000000000000 must be a positive integer and at most"),
        ({"hidden_size": 10**5000}, "model.hidden_size=<int> must be a positive integer"),
        ({"hidden_size": "64"}, "model.hidden_size='64' must be a positive integer"),
        ({"num_layers": True}, "model.num_layers=True must be a positive integer"),
        ({"num_layers": 2.0}, "model.num_layers=2.0 must be a positive integer"),
        ({"window_size": "wide"}, "model.window_size='wide' must be an integer or a pair"),
        ({"window_size": [4, None]}, "model.window_size=[4, None] must be an integer or a pair"),
        ({"gated_linear_unit": "yes"}, "model.gated_linear_unit='yes' must be true or false"),
        ({"normalization": 3}, "model.normalization=3 must be text"),
        ({"num_attention_heads": 0}, "model.num_attention_heads is missing"),
        ({"kimi_kda_layers": 5}, "model.kimi_kda_layers=5 must be a list of whole numbers"),
        ({"interleaved_attn_pattern": ["a", "b"]}, "model.interleaved_attn_pattern=['a', 'b'] must be a list of whole numbers"),
        ({"recompute_modules": "core_attn"}, "model.recompute_modules='core_attn' must be a list of words"),
        ({"engram_layers": "zz"}, "model.engram_layers='zz' must be a list of whole numbers"),
        ({"byte_latent_config": 5}, "model.byte_latent_config=5 must be a mapping of its fields"),
        ({"vision_config": [1]}, "model.vision_config=[1] must be a mapping of its fields"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_one_sentence(changes, message):
    with pytest.raises(ConfigError) as error:
        compile_plan(MODEL | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_ints():
    numpy = pytest.importorskip("numpy")
    shape = read({name: numpy.int64(value) for name, value in MODEL.items()}).shape
    assert type(shape.hidden_size) is int
    assert compile_plan({name: numpy.int32(value) for name, value in MODEL.items()}).flops([8192]) == compile_plan(MODEL).flops(
        [8192]
    )
