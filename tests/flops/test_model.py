"""The walk through a model: which modules it has, in which order, and where each of them stands."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bridge.flops import compile_plan
from bridge.flops.conventions import EXACT, MAXTEXT, MEGATRON, Convention
from bridge.flops.frameworks import MEGATRON as RUNS_MEGATRON
from bridge.flops.frameworks import TRANSFORMERS
from bridge.flops.model import root_terms, vision_terms
from bridge.flops.reading import Model, read
from bridge.flops.terms import Kind, Role, Term, TermPlace

SMALL = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 16, "num_attention_heads": 2, "vocab_size": 10}


def terms(fields: dict, convention: Convention = EXACT, framework=RUNS_MEGATRON) -> list[Term]:
    return root_terms(read(SMALL | fields), convention, framework)


def weights(found: list[Term]) -> list[str]:
    """Paths of what has parameters, in forward order."""
    return [term.path for term in found if term.parameters]


LAYER = ["input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "pre_mlp_layernorm", "mlp.linear_fc1",
         "mlp.linear_fc2"]  # fmt: skip


def test_a_plain_model_in_the_order_of_its_forward_pass():
    layers = [f"decoder.layers.{i}.{name}" for i in (0, 1) for name in LAYER]
    assert weights(terms({})) == ["embedding.word_embeddings", *layers, "decoder.final_layernorm", "output_layer"]


def test_where_each_term_stands():
    found = terms({"mtp_num_layers": 1, "hidden_size_per_layer_input": 4})
    places = {term.path: term.place for term in found if term.parameters}
    before = {path for path, place in places.items() if place is TermPlace.FIRST}
    assert before == {"embedding.word_embeddings", "embed_tokens_per_layer", "per_layer_model_projection",
                      "per_layer_projection_norm"}  # fmt: skip
    for path, place in places.items():
        if path.startswith("decoder.layers."):
            assert place == int(path.split(".")[2])
        elif path.startswith("mtp."):
            assert place is (TermPlace.LAST if path.endswith("output_layer") else TermPlace.MTP), path
    assert places["decoder.final_layernorm"] is places["output_layer"] is TermPlace.LAST


def test_layers_of_one_kind_differ_in_path_and_place_alone():
    found = terms({"num_layers": 3, "window_size": 4, "window_attn_skip_freq": [1, 0, 1]})
    first, second, third = ([t for t in found if t.path.startswith(f"decoder.layers.{i}.")] for i in range(3))

    def moved(layer):
        return [term.changed(path=term.path.replace(".2.", ".0."), place=0) for term in layer]

    assert moved(third) == first != moved(second)


# ---- norms, beside transformers' layers ------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "placement"),
    [("llama", "pre"), ("olmo2", "post"), ("gemma2", "sandwich"), ("gpt_neox", "parallel"), ("cohere", "shared")],
)
def test_norms_stand_where_transformers_has_them(model_type, placement):
    """As many in a layer as its module has, and the same parameters in the whole model."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, "pad_token_id": 0})
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    plan = compile_plan(config, "exact", framework="transformers")
    layer = (built.gpt_neox if model_type == "gpt_neox" else built.model).layers[0]
    theirs = [name for name, _ in layer.named_children() if "norm" in name]
    ours = [path for path in plan.parameters_by_module() if path.startswith("decoder.layers.0.") and path.count(".") == 3]
    assert read(config).shape.layernorm_placement == placement
    assert len(ours) == len(theirs) == {"pre": 2, "post": 2, "sandwich": 4, "parallel": 2, "shared": 1}[placement]
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        ("pre", ["input_layernorm", "pre_mlp_layernorm"]),
        ("post", ["post_attention_layernorm", "post_mlp_layernorm"]),
        ("sandwich", ["input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"]),
        ("parallel", ["pre_mlp_layernorm", "input_layernorm"]),
        ("shared", ["input_layernorm"]),
    ],
)
def test_norms_around_blocks(placement, names):
    found = [path.rpartition(".")[2] for path in weights(terms({"layernorm_placement": placement, "num_layers": 1}))]
    assert [name for name in found if name.endswith("layernorm")] == [*names, "final_layernorm"]


def test_norms_that_learn_nothing_and_a_last_one_that_is_not_there():
    plain = {term.path: term.parameters for term in terms({"layernorm_learned": False}) if term.kind is Kind.NORM}
    assert set(plain.values()) == {0}
    assert len(plain) == 2 * 2 + 1
    biased = [term.parameters for term in terms({"normalization": "LayerNorm"}) if term.kind is Kind.NORM]
    assert biased == [16] * 5
    assert "decoder.final_layernorm" not in weights(terms({"post_layer_norm": False}))
    assert compile_plan(SMALL | {"post_layer_norm": False}, "exact").flops([5]) == compile_plan(SMALL, "exact").flops([5])


# ---- multi-token prediction ------------------------------------------------------------------------------------------


def test_depths_follow_the_decoder_and_their_losses_come_first():
    found = terms({"mtp_num_layers": 2})
    depth = ["enorm", "hnorm", "eh_proj", *(f"transformer_layer.{name}" for name in LAYER), "final_layernorm"]
    after = weights(found)[weights(found).index("decoder.final_layernorm") + 1 :]
    assert after == [f"mtp.layers.{i}.{name}" for i in (0, 1) for name in depth] + ["output_layer"]
    logits = [term for term in found if term.name == "output_layer"]
    assert [term.path for term in logits] == ["mtp.layers.0.output_layer", "mtp.layers.1.output_layer", "output_layer"]
    assert [term.tied for term in logits] == ["output_layer", "output_layer", ""]
    assert [bool(term.roles & Role.TRAINING_ONLY) for term in logits] == [True, True, False]


def test_every_term_of_a_depth_runs_in_training_alone():
    found = terms({"mtp_num_layers": 1})
    assert {bool(term.roles & Role.TRAINING_ONLY) for term in found if term.path.startswith("mtp.")} == {True}
    assert not any(term.roles & Role.TRAINING_ONLY for term in found if not term.path.startswith("mtp.") and term.parameters)


def test_what_of_a_depth_a_convention_leaves_out():
    """MaxText counts a layer: neither a projection nor another output layer."""
    found = terms({"mtp_num_layers": 1}, MAXTEXT)
    assert not any(term.name == "eh_proj" for term in found)
    assert [term.path for term in found if term.name == "output_layer"] == ["output_layer"]
    # Megatron-LM projects into a depth of an ordinary model, and not of a hybrid one.
    hybrid = {"num_layers": None, "hybrid_layer_pattern": "*-/*-"}
    projected = {
        name: [any(term.name == "eh_proj" for term in terms(fields, convention)) for fields in ({"mtp_num_layers": 1}, hybrid)]
        for name, convention in (("megatron", MEGATRON), ("exact", EXACT))
    }
    assert projected == {"megatron": [True, False], "exact": [True, True]}


def test_a_depth_of_several_layers_numbers_them():
    found = weights(terms({"num_layers": None, "hybrid_layer_pattern": "*-/*-"}))
    inner = {
        path.partition("transformer_layer.")[2].partition(".self")[0] for path in found if "linear_qkv" in path and "mtp" in path
    }
    assert inner == {"layers.0"}
    assert "mtp.layers.0.transformer_layer.layers.1.mlp.linear_fc2" in found


def test_tied_embeddings_are_tied_at_every_output():
    found = terms({"mtp_num_layers": 1, "share_embeddings_and_output_weights": True})
    assert {term.tied for term in found if term.name == "output_layer"} == {"embedding.word_embeddings"}


def test_joint_logits_read_all_states():
    """megatron-core's output layer sees the decoder's and all depths' states as one tensor; transformers' sees one each."""

    def read_by_the_last(framework):
        found = terms({"mtp_num_layers": 2}, framework=framework)
        return [term.inputs for term in found if term.kind is Kind.JOIN and term.outputs == ("normed",)][-1]

    assert read_by_the_last(RUNS_MEGATRON) == ("states_0", "states_1", "states_2", "logits")
    assert read_by_the_last(TRANSFORMERS) == ("states_0",)


# ---- encoders and towers ---------------------------------------------------------------------------------------------


def test_an_encoder_has_streams_of_its_own():
    fields = {"encoder_num_layers": 1, "encoder_ffn_hidden_size": 24, "relative_attention_num_buckets": 32}
    found = terms(fields)
    own = [term for term in found if term.path.startswith("encoder.")]
    assert weights(own) == [
        "encoder.relative_attention_bias", *(f"encoder.layers.0.{name}" for name in LAYER), "encoder.final_layernorm",
    ]  # fmt: skip
    assert {name.split(".")[0] for term in own for name in (*term.inputs, *term.outputs)} == {"encoder"}
    assert all(term.roles & Role.ENCODER and term.place is TermPlace.FIRST for term in own)
    sizes = {term.path: (term.k, term.n) for term in found}
    assert sizes["encoder.layers.0.mlp.linear_fc1"] == (8, 24)
    assert sizes["decoder.layers.0.mlp.linear_fc1"] == (8, 16)
    # Both stacks have a table of buckets x heads; the word embedding is shared.
    assert sizes["decoder.relative_attention_bias"] == sizes["encoder.relative_attention_bias"] == (32, 2)
    assert [term.path for term in own if term.tied] == ["encoder.word_embeddings"]
    crossed = [path for path in weights(found) if "cross" in path and ".0." in path]
    assert crossed == [
        f"decoder.layers.0.{name}"
        for name in ("pre_cross_attn_layernorm", "cross_attention.linear_q", "cross_attention.linear_kv",
                     "cross_attention.linear_proj")
    ]  # fmt: skip


AUDIO = {"d_model": 6, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12, "max_source_positions": 7}


def test_audio_is_crossed_or_projected():
    alone, crossed = terms({"audio_config": AUDIO}), terms({"audio_config": AUDIO, "encoder_num_layers": 1})
    assert [path for path in weights(alone) if path.startswith("audio_projection")] == [
        "audio_projection.layer_norm", "audio_projection.linear",
    ]  # fmt: skip
    assert "audio_model.final_layernorm" not in weights(alone)
    assert not any(path.startswith("audio_projection") for path in weights(crossed))
    assert "audio_model.final_layernorm" in weights(crossed)
    for found in (alone, crossed):
        audio = [term for term in found if term.path.startswith("audio_model.layers")]
        assert {term.component for term in audio} == {"audio_model"}
        assert {term.bias for term in audio if term.name == "linear_qkv"} == {2 * 6}  # keys have no bias


TOWER = {"depth": 3, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 8}


def test_a_tower_comes_before_the_embedding():
    found = terms({"vision_config": TOWER})
    paths = weights(found)
    assert paths.index("embedding.word_embeddings") > max(i for i, path in enumerate(paths) if path.startswith("vision_model."))
    tower = [term for term in found if term.path.startswith("vision_model.")]
    assert all(term.place is TermPlace.FIRST and term.roles & Role.IMAGES for term in tower)
    layers = {path.split(".")[3] for path in paths if path.startswith("vision_model.decoder.layers.")}
    assert layers == {"0", "1", "2"}


def test_a_tower_that_a_frameworks_own_formula_leaves_out():
    fields = {"vision_config": TOWER, "formula": {"vision_config": None}}
    towers = [{path for path in weights(terms(fields, how)) if path.startswith("vision_model.")} for how in (EXACT, MAXTEXT)]
    assert ("vision_model.patch_embed" in towers[0], towers[1]) == (True, set())
    beside = Model(language=read(SMALL).language, vision=read({"vision_config": TOWER}).vision)
    assert "vision_model.patch_embed" in weights(root_terms(beside, MAXTEXT, RUNS_MEGATRON))


def test_a_merger_behind_a_layer_that_is_not_there():
    """It is built and never runs; Megatron's formula counts it all the same."""
    vision = read({"vision_config": TOWER | {"deepstack_visual_indexes": [1, 3]}}).vision
    found = {convention: vision_terms(vision, convention) for convention in (EXACT, MEGATRON)}

    def runs(convention, index):
        one = f"vision_model.deepstack_merger_list.{index}.linear_fc1"
        return [term.times for term in found[convention] if term.path == one]

    assert (runs(EXACT, 0), runs(EXACT, 1)) == ([Fraction(1)], [Fraction(0)])
    assert (runs(MEGATRON, 0), runs(MEGATRON, 1)) == ([Fraction(1)], [Fraction(1)])
    # The first one stands right behind its layer.
    order = [term.path for term in found[EXACT] if term.parameters]
    behind = order.index("vision_model.deepstack_merger_list.0.linear_fc1")
    assert (
        max(i for i, path in enumerate(order) if ".layers.1." in path)
        < behind
        < order.index("vision_model.decoder.layers.2.input_layernorm")
    )


def test_what_kind_of_model_it_is():
    tower = Model(vision=read({"vision_config": TOWER}).vision)
    assert {path.split(".")[0] for path in weights(root_terms(tower, EXACT, RUNS_MEGATRON))} == {"vision_model"}
    assert root_terms(Model(), EXACT, RUNS_MEGATRON) == []
    dit = read({"diffusion_config": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4}})
    assert not any("word_embeddings" in path for path in weights(root_terms(dit, EXACT, RUNS_MEGATRON)))
    assert weights(root_terms(dit, EXACT, RUNS_MEGATRON))
    blt = read({"byte_latent_config": {}})
    parts = {path.split(".")[0] for path in weights(root_terms(blt, EXACT, RUNS_MEGATRON))}
    assert parts >= {"patcher", "local_encoder", "global_transformer", "local_decoder"}


def test_parameters_without_work():
    plan = compile_plan(SMALL | {"unpriced_parameters": 123}, "exact")
    assert plan.parameters()["total"] == compile_plan(SMALL, "exact").parameters()["total"] + 123
    assert plan.flops([5]) == compile_plan(SMALL, "exact").flops([5])


def test_a_learned_table_of_positions_only_where_positions_are_learned():
    fields = {"max_position_embeddings": 7}
    assert "embedding.position_embeddings" not in weights(terms(fields))
    learned = terms(fields | {"position_embedding_type": "learned_absolute"})
    (table,) = (term for term in learned if term.path == "embedding.position_embeddings" and term.parameters)
    assert table.parameters == 7 * 8
