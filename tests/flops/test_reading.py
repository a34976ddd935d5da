"""The one entry point: configurations as people have them, the parts of a model, and what cannot be."""

import argparse
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from bridge.config import list_recipes, load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import Description, Model, get, model_of, peft_of, read, read_layout, read_vision
from bridge.flops.shapes import MAX_LAYERS, ByteLatentShape, ModelShape, StackShape, VisionShape
from bridge.flops.terms import Term
from bridge.flops.transforms import DEFAULT_TARGETS, Lora
from bridge.training.utils.flop_utils import num_floating_point_operations

LENGTHS = [4096, 100]
DENSE = {
    "num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 512, "num_attention_heads": 8, "num_query_groups": 2,
    "kv_channels": 48, "gated_linear_unit": True, "num_moe_experts": 8, "moe_router_topk": 3, "moe_ffn_hidden_size": 96,
}  # fmt: skip
LATENT = {
    "num_layers": 3, "hidden_size": 256, "num_attention_heads": 8, "q_lora_rank": 96, "kv_lora_rank": 64,
    "qk_head_dim": 32, "qk_pos_emb_head_dim": 16, "v_head_dim": 24, "ffn_hidden_size": 512,
}  # fmt: skip


@pytest.mark.parametrize("convention", ["megatron", "maxtext", "exact", "executed"])
def test_transformer_config(convention):
    config = TransformerConfig(**DENSE, add_bias_linear=False, normalization="RMSNorm")
    expected = compile_plan(DENSE | {"vocab_size": 1000}, convention)
    for cfg in ({"model": config, "vocab_size": 1000}, argparse.Namespace(model=config, vocab_size=1000)):
        assert compile_plan(cfg, convention).flops(LENGTHS) == expected.flops(LENGTHS)
    config.vocab_size = 1000
    assert compile_plan(config, convention).flops(LENGTHS) == expected.flops(LENGTHS)
    assert compile_plan(config, convention).parameters() == expected.parameters()


def test_latent_transformer_config():
    config = MLATransformerConfig(**LATENT)
    cfg = {"model": config, "vocab_size": 1000, "seq_length": 512}
    expected = {"model": LATENT | {"multi_latent_attention": True, "vocab_size": 1000, "seq_length": 512}}
    assert num_floating_point_operations(cfg, 3) == num_floating_point_operations(expected, 3)


def test_a_transformer_config_alone_has_no_vocabulary():
    with pytest.raises(ConfigError, match="model.vocab_size is missing"):
        compile_plan(TransformerConfig(**DENSE))


def test_arguments_of_megatron_lm():
    args = argparse.Namespace(
        num_layers=4, hidden_size=256, ffn_hidden_size=512, num_attention_heads=8, group_query_attention=True, num_query_groups=2,
        kv_channels=48, swiglu=True, num_experts=8, moe_router_topk=3, moe_ffn_hidden_size=96, moe_layer_freq=1,
        vocab_size=None, padded_vocab_size=1024, make_vocab_size_divisible_by=128, tensor_model_parallel_size=2,
        untie_embeddings_and_output_weights=True, seq_length=4096, mtp_num_layers=None,
    )  # fmt: skip
    expected = compile_plan(DENSE | {"vocab_size": 1000, "tensor_model_parallel_size": 2})
    assert compile_plan(args).flops(LENGTHS) == expected.flops(LENGTHS)
    # Without the flag Megatron-LM leaves num_query_groups at 1 and means every head.
    args.group_query_attention, args.num_query_groups = False, 1
    assert read(args).shape.key_value_heads == 8
    args.untie_embeddings_and_output_weights = False
    assert read(args).shape.share_embeddings_and_output_weights


def test_a_provider_of_megatron_bridge():
    """Its providers are TransformerConfigs with the vocabulary and the length beside the layers."""

    @dataclass
    class Provider(TransformerConfig):
        vocab_size: int = 1000
        seq_length: int = 4096
        make_vocab_size_divisible_by: int = 128
        share_embeddings_and_output_weights: bool = True
        activation_func: object = None

    cfg = argparse.Namespace(model=Provider(**DENSE), peft=None)
    expected = {"model": DENSE | {"vocab_size": 1000, "seq_length": 4096}}
    assert num_floating_point_operations(cfg, 2) == num_floating_point_operations(expected, 2)
    assert num_floating_point_operations(cfg, 2, 5000, 20_000_000) == num_floating_point_operations(expected, 2, 5000, 20_000_000)


# ---- where a configuration comes from --------------------------------------------------------------------------------

SMALL = {"num_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 100}


def test_fields_of_mappings_and_objects():
    assert (get({"a": 1}, "a"), get({"a": 1}, "b"), get(SimpleNamespace(a=0), "a"), get(None, "a")) == (1, None, 0, None)
    inner = {"a": 1}
    assert model_of({"model": inner}) is inner
    assert model_of(SimpleNamespace(model=inner)) is inner
    assert model_of(inner) is inner
    assert model_of({"model": None, "a": 1}) == {"model": None, "a": 1}


def test_what_was_read_is_read():
    model = read(SMALL)
    assert read(model) is model
    assert read(Description(model={}, traced=model)) is model
    assert read_vision(model) is None


def test_of_a_trace_everything_trains_but_what_was_frozen_when_it_ran():
    terms = tuple(Term(name, "mlp", 2, 3, path=name, bias=3) for name in ("up", "down"))
    traced = Model(traced=terms, freeze=("up",))
    assert [traced.trainable.parameters(term) for term in terms] == [0, 2 * 3 + 3]


def test_a_recipe_by_its_name_and_by_its_path():
    (path,) = (path for path in list_recipes() if path.stem == "llama3-8b")
    assert read("llama3-8b") == read(path) == read(str(path)) == read(load_recipe("llama3-8b", validate=False))


def test_names_beside_the_model_stand_in_where_it_has_none():
    beside = {
        "model": SMALL | {"vocab_size": None},
        "vocab_size": 50,
        "seq_length": 7,
        "parallel": {"tensor_model_parallel_size": 3},
    }
    shape = read(beside).shape
    assert (shape.vocab_size, shape.seq_length, shape.tensor_model_parallel_size) == (50, 7, 3)
    assert read(beside).sequence_length == 7
    own = SMALL | {"seq_length": 5, "tensor_model_parallel_size": 2}
    shape = read(beside | {"model": own}).shape
    assert (shape.vocab_size, shape.seq_length, shape.tensor_model_parallel_size) == (100, 5, 2)


def test_a_vocabulary_of_which_only_the_padded_size_is_known():
    padded = read(SMALL | {"vocab_size": None, "padded_vocab_size": 128})
    assert (padded.shape.vocab_size, padded.true_vocabulary) == (128, False)
    assert read(SMALL | {"padded_vocab_size": 128}).true_vocabulary
    assert read({"model": SMALL | {"vocab_size": None, "padded_vocab_size": 128}, "vocab_size": 100}).true_vocabulary


def test_sections_beside_the_model():
    found = read({"model": SMALL, "framework": "transformers", "reference_model": {}, "teacher": SMALL | {"num_layers": 2}})
    assert (found.framework.name, found.reference, found.adapted) == ("transformers", False, False)
    assert found.teacher.shape.num_layers == 2
    assert read(SMALL | {"teacher": SMALL}).teacher == read(SMALL)  # Megatron-Bridge has it on the provider
    with pytest.raises(ConfigError, match="framework='jax' is not known"):
        read({"model": SMALL, "framework": "jax"})


def test_uneven_stages_under_both_names():
    ours = {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 3}
    theirs = {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 3}
    expected = read_layout({"model": SMALL, "parallel": theirs})
    assert expected == read_layout(SMALL | ours) == read_layout({"model": SMALL | theirs})
    assert (expected.num_layers_in_first_pipeline_stage, expected.num_layers_in_last_pipeline_stage) == (1, 3)
    assert read_layout({"hybrid_layer_pattern": "M*|-M-/*"}).segments == (2, 3)
    assert read_layout(SMALL).segments == ()


@pytest.mark.parametrize(
    ("factor", "experts", "named"), [(1.5, 4, True), (0, 4, True), (-1.0, 4, False), (None, 4, False), (1.5, None, False)]
)
def test_experts_of_a_recipe_that_may_drop_tokens(factor, experts, named):
    config = load_recipe("tiny", validate=False)
    config.model.moe_expert_capacity_factor, config.model.num_moe_experts = factor, experts
    sentence = f"moe_expert_capacity_factor={factor}: tokens that experts drop are counted, padding that they add is not"
    assert read(config).not_counted == ((sentence,) if named else ())


# ---- parts -----------------------------------------------------------------------------------------------------------

TOWER = {"depth": 2, "hidden_size": 8, "out_hidden_size": 16}


@pytest.mark.parametrize(
    "other",
    [
        {"num_hidden_layers": 2, "hidden_size": 8}, {"num_layers": 2, "embed_dim": 8},
        {"depth": 2, "num_hidden_layers": 9, "hidden_size": 8, "embed_dim": 9},  # its own name wins
    ],
)  # fmt: skip
def test_other_names_of_a_towers_sizes(other):
    assert read_vision({"vision_config": other | {"out_hidden_size": 16}}) == read_vision({"vision_config": TOWER})


def test_other_names_of_a_towers_other_fields():
    theirs = {"num_attention_heads": 4, "num_channels": 1, "vision_output_dim": 5, "merge_size": 3}
    found = read_vision({"vision_config": TOWER | theirs})
    assert (found.num_heads, found.in_channels, found.projector_output_dim, found.spatial_merge_size) == (4, 1, 5, 3)
    assert read_vision({"vision_config": TOWER | {"in_chans": 1}}).in_channels == 1


@pytest.mark.parametrize(
    "cfg",
    [
        {"vision_config": TOWER | {"deepstack_visual_indexes": [1]}, "deepstack_visual_indexes": [0]},
        {"vision_config": TOWER, "deepstack_visual_indexes": [1], "thinker_config": {"deepstack_visual_indexes": [0]}},
        {"thinker_config": {"vision_config": TOWER, "deepstack_visual_indexes": [1]}},
        {"vision_config": TOWER, "thinker_config": {"vision_config": {"depth": 9}, "deepstack_visual_indexes": [1]}},
    ],
)
def test_where_a_tower_and_its_indexes_may_stand(cfg):
    assert read_vision(cfg) == VisionShape(**TOWER, deepstack_visual_indexes=(1,))


def test_the_width_that_a_tower_projects_to():
    bare = {"depth": 2, "hidden_size": 8}
    assert read(SMALL | {"vision_config": bare}).vision.out_hidden_size == 16  # the language model's
    assert read({"vision_config": bare}).vision.out_hidden_size == 8  # its own
    assert read({"vision_config": bare}).language is None
    assert read_vision(SMALL) is None


def test_an_audio_encoder():
    whisper = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    assert read(SMALL | {"audio_config": whisper}).audio.output_dim == 16
    assert read(SMALL | {"audio_config": whisper | {"output_dim": 5}}).audio.output_dim == 5
    other = read(SMALL | {"audio_config": {"hidden_size": 8}})
    assert (other.audio, other.not_counted) == (None, ("audio_config: only audio encoders like Whisper's are counted",))


def test_a_byte_latent_model():
    """A field that is there and None means none; one that is missing, the published model's."""
    published = read({"byte_latent_config": {}})
    assert (published.byte_latent, published.language, published.freeze) == (ByteLatentShape(), None, ("patcher",))

    def shape(**fields):
        return read({"byte_latent_config": fields}).byte_latent

    assert (shape(patcher_config=None).patcher_config, shape(patch_in_forward=False).patcher_config) == (None, None)
    assert shape(patch_in_forward=True).patcher_config == ByteLatentShape().patcher_config
    assert (shape(local_attention_window_len=None).local_attention_window_len, shape().local_attention_window_len) == (None, 512)
    stack = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    encoder = {
        "encoder_config": stack | {"cross_attn_all_layers": True},
        "decoder_config": stack | {"cross_attn_all_layers": False},
    }
    found = shape(**encoder, patcher_config=stack | {"sliding_window": 7})
    assert (found.encoder_cross_attn_all_layers, found.decoder_cross_attn_all_layers) == (True, False)
    assert (found.patcher_sliding_window, found.encoder_config) == (7, StackShape(**stack))
    assert shape(patcher_config=stack).patcher_sliding_window == 512
    assert shape(patcher_config=stack | {"sliding_window": None}).patcher_sliding_window is None


# ---- adapters --------------------------------------------------------------------------------------------------------


class DoRA:
    dim, target_modules = 4, ["linear_fc2"]


class LoRA:
    dim, target_modules, dropout = 4, None, 0.1


@pytest.mark.parametrize(
    ("peft", "adapters"),
    [
        ({"dim": 4}, Lora(4)),
        ({"kind": "lora", "dim": 4, "target_modules": []}, Lora(4, DEFAULT_TARGETS)),
        ({"kind": "lora", "dim": 4, "target_modules": ("linear_fc2",), "dropout": 0.0}, Lora(4, ("linear_fc2",))),
        ({"kind": "dora", "dim": 4, "dropout": 0.5}, Lora(4, dora=True, dropout=True)),
        ({"kind": "qlora", "dim": 4}, Lora(4, four_bits=True)),
        (DoRA(), Lora(4, ("linear_fc2",), dora=True)),
        (LoRA(), Lora(4, dropout=True)),
        ({"kind": "freeze", "dim": 4}, None),
        (None, None),
    ],
)
def test_adapters(peft, adapters):
    found = read({"model": SMALL, "peft": peft})
    assert found.adapters == adapters
    assert found.adapted == (peft is not None)
    assert peft_of({"peft": peft}) == (adapters, (), ())


def test_patterns_of_what_trains():
    peft = {"kind": "freeze", "freeze": ["decoder"], "train": ["*norm"]}
    assert peft_of({"peft": peft}) == (None, ("decoder",), ("*norm",))
    found = read({"model": SMALL, "peft": peft})
    assert (found.freeze, found.train) == (("decoder",), ("*norm",))


# ---- what cannot be --------------------------------------------------------------------------------------------------

DEEP = [
    ("model.num_layers", lambda n: SMALL | {"num_layers": n}),
    ("model.hybrid_layer_pattern", lambda n: SMALL | {"num_layers": None, "hybrid_layer_pattern": "*" * n}),
    ("model.encoder_num_layers", lambda n: SMALL | {"encoder_num_layers": n}),
    ("model.mtp_num_layers", lambda n: SMALL | {"mtp_num_layers": n}),
    ("model.vision_config.depth", lambda n: SMALL | {"vision_config": TOWER | {"depth": n}}),
    ("model.audio_config.encoder_layers", lambda n: SMALL | {"audio_config": {
        "d_model": 8, "encoder_layers": n, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}}),
    ("model.diffusion_config.num_layers", lambda n: {"diffusion_config": {
        "num_layers": 1, "num_single_layers": n - 1, "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4}}),
    ("model.byte_latent_config.global_config.num_hidden_layers", lambda n: {"byte_latent_config": {
        "global_config": {"num_hidden_layers": n, "hidden_size": 8, "num_attention_heads": 2}}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), DEEP, ids=[name for name, _ in DEEP])
def test_layers_are_counted_before_anything_is_built(name, config):
    assert isinstance(read(config(MAX_LAYERS)), Model)
    with pytest.raises(ConfigError) as error:
        read(config(MAX_LAYERS + 1))
    assert str(error.value) == f"{name}: {MAX_LAYERS + 1} layers are more than the maximum of {MAX_LAYERS}; is it a mistake?"


def test_depths_of_several_layers_each():
    fields = {"num_layers": None, "hybrid_layer_pattern": "*-", "mtp_hybrid_override_pattern": "*-"}
    assert read(SMALL | fields | {"mtp_num_layers": MAX_LAYERS // 2}).shape.mtp_num_layers == MAX_LAYERS // 2
    with pytest.raises(ConfigError, match=f"model.mtp_num_layers: {MAX_LAYERS + 2} layers"):
        read(SMALL | fields | {"mtp_num_layers": MAX_LAYERS // 2 + 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"num_moe_experts": 4, "moe_router_topk": 4}, {"num_kv_shared_layers": 4}, {"kimi_kda_layers": [1, 4],
         "kimi_linear_num_heads": 2, "kimi_linear_head_dim": 4}, {"dsa_indexer_layers": [1, 0, 1, 0]},
        {"num_attention_heads": 3, "kv_channels": 4}, {"num_query_groups": 4}, {"window_size": (-1, -1)}, {"window_size": [3, 0]},
    ],
)  # fmt: skip
def test_what_just_fits(fields):
    shape = read(SMALL | fields).shape
    assert {name: getattr(shape, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 3}, "model.num_attention_heads=3 does not divide model.hidden_size=16: change one of them or "
         "set model.kv_channels"),
        ({"num_query_groups": 3}, "model.num_query_groups=3 does not divide model.num_attention_heads=4"),
        ({"num_query_groups": 8}, "model.num_query_groups=8 does not divide model.num_attention_heads=4"),
        ({"num_moe_experts": 4, "moe_router_topk": 5}, "model.moe_router_topk=5 is larger than model.num_moe_experts=4"),
        ({"num_kv_shared_layers": 5}, "model.num_kv_shared_layers=5 is more than model.num_layers=4"),
        ({"kimi_kda_layers": [5]}, "model.kimi_kda_layers has the layer 5; layers are numbered from 1 to model.num_layers=4"),
        ({"dsa_indexer_layers": [1, 0]}, "model.dsa_indexer_layers=[1, 0] must be a list with one entry for each of 4 layers"),
        ({"layernorm_placement": "behind"}, "model.layernorm_placement='behind' must be one of pre, post, sandwich, parallel, "
         "shared"),
        ({"window_size": True}, "model.window_size=True must be an integer or a pair (left, right)"),
        ({"window_size": (1, 2, 3)}, "model.window_size=(1, 2, 3) must be an integer or a pair (left, right)"),
        ({"vision_config": TOWER | {"projector_type": "mplug"}}, "model.vision_config.projector_type='mplug' is not known; "
         "choose one of "),
        ({"vision_config": {"hidden_size": 8}}, "model.vision_config.depth is missing: set it to a positive integer"),
        ({"thinker_config": {"vision_config": "x"}}, "model.vision_config='x' must be a mapping of its fields"),
        ({"audio_config": {"d_model": 8}}, "model.audio_config.encoder_layers is missing: set it to a positive integer"),
        ({"diffusion_config": {"num_layers": 2}}, "model.diffusion_config.num_attention_heads is missing: set it to a positive "
         "integer"),
        ({"byte_latent_config": {"global_config": {"num_hidden_layers": 1}}}, "model.byte_latent_config.global_config."),
        ({"byte_latent_config": {"global_config": {"num_hidden_layers": 1, "hidden_size": 9, "num_attention_heads": 2}}},
         "model.byte_latent_config.global_config: num_attention_heads=2 must divide hidden_size=9 and be a multiple of "
         "num_key_value_heads=None"),
        ({"byte_latent_config": {"decoder_config": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}}},
         "model.byte_latent_config: encoder_config.hidden_size=1024 and decoder_config.hidden_size=8 must agree: the decoder "
         "starts from the encoder's bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(fields, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        read(SMALL | fields)


def test_a_model_without_a_language_model_has_an_empty_shape():
    assert Model().shape == ModelShape()
    assert Model().language is None


# A mutant that nothing tells apart: another operator in an annotation, which is never evaluated.
