"""How each family is read: published files give the published models, and layers are what transformers makes them."""

from __future__ import annotations

from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import pytest

from bridge.config import from_huggingface, load_recipe
from bridge.config.schema import ModelConfig
from bridge.config.sources.huggingface_families import FAMILIES, Family
from bridge.config.sources.huggingface_fields import Fields
from bridge.flops import compile_plan
from bridge.flops.frameworks import FRAMEWORKS
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.flops.shapes import StackShape
from tests.config.sources.published import PUBLISHED, QWEN3

MODELS = Path(__file__).parents[3] / "recipes/models"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_recipes_models(name: str) -> None:
    ours = load_recipe(MODELS / f"{name}.yaml", validate=False)
    ours.model.moe_router_enable_expert_bias = False  # a buffer of transformers' models, not a parameter
    theirs = from_huggingface(PUBLISHED[name])
    lengths, patches = [5000, 100], [256, 1024] if ours.model.vision_config else []
    for convention in ("megatron", "exact"):
        expected, found = (compile_plan(source, convention, framework="transformers") for source in (ours, theirs))
        assert found.flops(lengths, patches) == expected.flops(lengths, patches)
        assert found.parameters() == expected.parameters()
    assert from_huggingface(PUBLISHED[name]).not_counted == LEFT_OUT.get(name, ())


#: What transformers does not build of a published model.
LEFT_OUT = {
    "minimax-m2": ("num_mtp_modules=3: transformers does not train these layers; model.mtp_num_layers=3 counts them",),
}


def test_training_options_follow() -> None:
    model = from_huggingface({**QWEN3, "attention_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh"}).model
    assert (model.rotary_base, model.layernorm_epsilon, model.attention_dropout) == (1000000, 1e-6, 0.1)
    assert (model.activation_func, model.make_vocab_size_divisible_by) == ("gelu_tanh", 128)
    assert (model.max_position_embeddings, model.seq_length) == (40960, None)  # a limit is no length
    scaled = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 100278}
    model = from_huggingface({"model_type": "llama", "rope_parameters": scaled, **sizes}).model
    assert (model.rope_scaling, model.rope_scaling_factor, model.make_vocab_size_divisible_by) == (True, 8.0, 2)


# ---- rows ------------------------------------------------------------------------------------------------------------


OURS = {item.name for item in fields_of(ModelConfig)}


def test_rows_are_complete() -> None:
    """Options are ours, inner families are rows themselves, frameworks are known, and ignored are names."""
    for name, family in FAMILIES.items():
        assert {*family.fields, *family.fixed} <= OURS, name
        assert family.text in ("", *FAMILIES), name
        assert family.framework in FRAMEWORKS, name
        assert all(map(str.isidentifier, family.ignored.split())), name


def test_a_family_like_another() -> None:
    base = Family(
        fields={"num_layers": "n", "hidden_size": "h"}, fixed={"is_causal": False}, ignored="a", text="x", framework="megatron"
    )
    rule = lambda fields: {"vocab_size": 3}  # noqa: E731
    more = base.plus(rule, fields={"num_layers": "m"}, fixed={"is_causal": True}, ignored="b")
    assert (more.fields, more.fixed) == ({"num_layers": "m", "hidden_size": "h"}, {"is_causal": True})
    assert (more.rules, more.ignored.split(), more.text, more.framework) == ((rule,), ["a", "b"], "x", "megatron")
    assert base.fields == {"num_layers": "n", "hidden_size": "h"}
    assert base.plus(text="y").text == "y"


def test_what_wins_in_a_row() -> None:
    """A rule over a field, what the architecture settles over both; what is not set is left out."""
    family = Family(
        fields={"num_layers": ("n_layer", "num_layers"), "hidden_size": "hidden_size", "vocab_size": "vocab_size"},
        rules=(lambda fields: {"hidden_size": 7, "ffn_hidden_size": None}, lambda fields: {"vocab_size": 8}),
        fixed={"vocab_size": 9},
        ignored="odd",
    )
    fields = Fields({"num_layers": 2, "hidden_size": 3, "vocab_size": 4, "odd": 5, "text_config": {"a": 1}}, "")
    assert family.options(fields) == {"num_layers": 2, "hidden_size": 7, "vocab_size": 9}
    assert fields.sentences() == []


@pytest.mark.parametrize("size", [1, 2, 3, 64, 96, 127, 128, 129, 192, 256, 50257, 100278, 151936])
def test_a_vocabulary_is_not_padded(size: int) -> None:
    """By the largest power of two up to 128 that divides it."""
    model = from_huggingface(QWEN3 | {"vocab_size": size}).model
    assert model.make_vocab_size_divisible_by == max(2**i for i in range(8) if size % 2**i == 0)
    assert model.built_vocab_size == size


# ---- layers, beside transformers' classes ----------------------------------------------------------------------------

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}


def config_of(model_type: str, fields: dict[str, Any]) -> Any:
    return pytest.importorskip("transformers").AutoConfig.for_model(model_type, **fields)


#: Family -> what its file says of windows; `layer_types` is left to the class.
WINDOWED: list[tuple[str, dict[str, Any]]] = [
    *((name, {"sliding_window": 16}) for name in (
        "gemma2", "gemma3_text", "cohere2", "exaone4", "exaone_moe", "gpt_oss", "olmo3", "vaultgemma", "cwm", "ministral",
        "granite_swa", "granitemoe_swa", "dots1", "gemma4_text",
    )),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 3}),
    ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
    ("qwen2_moe", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 5}),
    ("smollm3", {"sliding_window": 16, "use_sliding_window": True}),
    ("smollm3", {"sliding_window": 16, "use_sliding_window": True, "no_rope_layer_interval": 2}),
    ("dots1", {"sliding_window": 16, "max_window_layers": 4}),
    ("exaone4", {"sliding_window": 16, "sliding_window_pattern": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields"), WINDOWED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WINDOWED)])
def test_windows_are_where_the_class_has_them(model_type: str, fields: dict[str, Any]) -> None:
    for layers in (1, 2, 7, 12):
        file = SIZES | fields | {"num_hidden_layers": layers}
        theirs = config_of(model_type, file).layer_types
        shape = read(from_huggingface({"model_type": model_type, **file})).shape
        local = [layer.context.shape == "window" for layer in decoder_layers(shape)]
        assert local == [kind == "sliding_attention" for kind in theirs], layers
        assert shape.window in (0, 16)


def test_the_last_layer_of_gemma_4_is_global_whatever_is_listed() -> None:
    file = SIZES | {"num_hidden_layers": 3, "sliding_window": 16, "layer_types": ["full_attention", *["sliding_attention"] * 2]}
    shape = read(from_huggingface({"model_type": "gemma4_text", **file})).shape
    theirs = config_of("gemma4_text", {**file, "layer_types": list(file["layer_types"])}).layer_types
    assert theirs == ["full_attention", "sliding_attention", "full_attention"]
    assert [layer.context.shape for layer in decoder_layers(shape)] == ["causal", "window", "causal"]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("lfm2", {}),  # silence is a factor of 1, rounded up
        ("lfm2", {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 32}),
        ("lfm2", {"block_auto_adjust_ff_dim": False}),
        ("gpt_neox", {"num_key_value_heads": 2, "head_dim": 24}),
        ("opt", {"num_key_value_heads": 2, "head_dim": 24, "ffn_dim": 96, "word_embed_proj_dim": 64}),
        ("gpt2", {"n_inner": None}),
        ("gpt_bigcode", {"multi_query": True}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"multi_query": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("phi", {"qk_layernorm": False}),
    ],
)
def test_a_file_has_the_parameters_of_the_model_that_is_built(model_type: str, fields: dict[str, Any]) -> None:
    """What the file leaves out is what the class assumes, and what the class does not look at changes nothing."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file = SIZES | {"num_hidden_layers": 2, "intermediate_size": 96} | fields
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config_of(model_type, file | {"pad_token_id": 0}))
    counted = compile_plan(from_huggingface({"model_type": model_type, **file}), "exact").parameters()
    assert counted["total"] == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("file", [{}, {"full_attention_interval": 3}, {"full_attention_interval": 1}])
def test_delta_rules_are_where_the_class_has_them(file: dict[str, Any]) -> None:
    for layers in (1, 2, 7, 12):
        kinds = config_of("qwen3_next", SIZES | file | {"num_hidden_layers": layers}).layer_types
        model = from_huggingface({"model_type": "qwen3_next", **SIZES, **file, "num_hidden_layers": layers}).model
        expected = [int(kind == "linear_attention") for kind in kinds]
        assert model.linear_attention_freq == (expected if any(expected) else None), layers


@pytest.mark.parametrize(("file", "merged"), [({}, 2), ({"downsample_ratio": 0.25}, 4)])
def test_internvl_merges_as_many_patches_a_side_as_its_ratio_says(file: dict[str, Any], merged: int) -> None:
    found = from_huggingface({"model_type": "internvl", "text_config": {"model_type": "qwen2", "hidden_size": 64}, **file})
    assert found.model.vision_config["spatial_merge_size"] == merged


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 32, "num_hidden_layers": 6}
#: Family -> what its file says of its experts.
SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"num_experts": 4}),
    ("qwen3_moe", {"num_experts": 4, "decoder_sparse_step": 2}),
    ("qwen3_moe", {"num_experts": 4, "decoder_sparse_step": 3, "mlp_only_layers": [2]}),
    ("qwen2_moe", {"num_experts": 4, "mlp_only_layers": [0, 5]}),
    ("mixtral", {"num_local_experts": 4}),
    ("deepseek_v3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}),
    ("glm4_moe", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 16}),
    ("ernie4_5_moe", {"moe_num_experts": 4, "moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 1}),
    ("ernie4_5_moe", {"moe_num_experts": 4, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 2}),
    ("llama4_text", {"num_local_experts": 4, "interleave_moe_layer_step": 2, "head_dim": 16}),
    ("jamba", {"num_experts": 4, "expert_layer_period": 3, "expert_layer_offset": 1, "use_mamba_kernels": False}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields"), SPARSE, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SPARSE)])
def test_experts_are_where_the_model_has_them(model_type: str, fields: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file = SIZES | EXPERTS | fields
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(model_type, file | {"pad_token_id": 0}))
    built = [any("experts" in name for name, _ in layer.named_modules()) for layer in model.model.layers]
    shape = read(from_huggingface({"model_type": model_type, **file})).shape
    assert [layer.channel == "moe" for layer in decoder_layers(shape)] == built
    assert any(built)


#: The language models' sizes do not matter here: what is built beside them and not priced has parameters.
_TEXT = {"num_hidden_layers": 1, "hidden_size": 2560, "intermediate_size": 64, "num_attention_heads": 8, "vocab_size": 128}

_TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "patch_size": 14, "num_channels": 3}


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        # SigLIP's pooling head: a probe, an attention, a norm and an MLP.
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **_TEXT}, "vision_config": {
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 12,
                "image_size": 224, "patch_size": 16, "vision_use_head": True}},
            768 + 4 * 768 * 769 + 2 * 768 + 2 * 768 * 3072 + 3072 + 768,
        ),
        # Pixtral's tower, and the norm, the merger and the two layers of the projector.
        (
            {"model_type": "mistral3", "text_config": {"model_type": "mistral", **_TEXT}, "vision_config": _TOWER},
            3 * 14 * 14 * 1024 + 1024 + 4 * (4 * 1024 * 1024 + 3 * 1024 * 4096 + 2 * 1024)
            + 1024 + 4 * 1024 * 1024 + 1024 * 2560 + 2560 * 2560,
        ),
        ({"model_type": "bert", **_TEXT, "tie_word_embeddings": False}, 128),
    ],
)  # fmt: skip
def test_what_is_built_and_not_priced_has_parameters(file: dict, entries: int) -> None:
    found = from_huggingface(file)
    assert found.model.unpriced_parameters == entries
    for convention in ("exact", "executed"):
        plan = compile_plan(found, convention)
        assert plan.parameters_by_module()["unpriced"] == entries
        assert "unpriced" not in {row.name for row in plan.table([5])}


@pytest.mark.parametrize(
    ("file", "reported"),
    [
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1"),
        ({"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers=2"),
        ({"use_mtp": True, "num_mtp_modules": 3}, "num_mtp_modules=3"),
        ({"use_mtp": False, "num_mtp_modules": 3}, None),
        ({"num_mtp_modules": 0, "num_nextn_predict_layers": None}, None),
    ],
)
def test_multi_token_prediction_is_named_in_every_family(file: dict[str, Any], reported: str | None) -> None:
    """What transformers does not build changes the count; the sentence names the field and what counts it."""
    for model in (QWEN3, PUBLISHED["deepseek-v3"], PUBLISHED["minimax-m2"] | {"use_mtp": None, "num_mtp_modules": 0}):
        sentences = [sentence.split(":")[0] for sentence in from_huggingface(model | file).not_counted]
        assert sentences == ([reported] if reported else [])


#: Fields of published files that no class of transformers uses, by family: neutral, not unknown.
UNUSED: dict[str, dict[str, Any]] = {
    "bert": {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform", "output_past": True},
    "exaone4": {"sliding_window_pattern": "LLLG"},
    "falcon_h1": {"mlp_expansion_factor": 8, "mamba_use_mlp": True, "attn_layer_indices": None, "num_logits_to_keep": 1},
    "gpt_oss": {"experts_per_token": 4, "initial_context_length": 4096, "swiglu_limit": 7.0},
    "hunyuan_v1_dense": {"attention_head_dim": 128, "cla_share_factor": 2, "dense_list": [4096, 0], "norm_type": "rms",
                         "num_experts": 1, "moe_topk": 1, "num_shared_expert": 1, "use_rotary_pos_emb": True},
    "llama4_text": {"for_llm_compressor": False, "floor_scale": 8192, "attn_scale": 0.1, "attn_temperature_tuning": True},
    "mimo": {"attention_bias": True},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "embd_pdrop": 0.1},
    "qwen3_moe": {"max_window_layers": 48},
    "smollm3": {"max_window_layers": 28, "pretraining_tp": 2},
    "starcoder2": {"activation_function": "gelu", "mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True},
    "deepseek_v4": {"expert_dtype": "fp4", "compress_rope_theta": 160000.0, "num_hash_layers": 0},
}  # fmt: skip


@pytest.mark.parametrize("model_type", UNUSED)
def test_what_no_class_uses_is_no_alarm(model_type: str) -> None:
    file = {"model_type": model_type, "hidden_size": 2048, "num_hidden_layers": 8, "num_nextn_predict_layers": 0}
    plain, published = from_huggingface(file), from_huggingface(file | UNUSED[model_type])
    assert published.not_counted == ()
    plans = [compile_plan(source, "exact") for source in (plain, published)]
    assert plans[0].parameters() == plans[1].parameters()
    assert plans[0].flops([5000]) == plans[1].flops([5000])


def test_what_is_off_is_not_looked_at() -> None:
    """0 and null switch a feature off, and what belongs to it may hold anything."""
    off = {"head_dim": 0, "num_key_value_heads": 0, "num_experts": 0, "num_nextn_predict_layers": 0, "kv_lora_rank": 0}
    llama = PUBLISHED["llama3-8b"] | {"num_key_value_heads": 32}
    assert compile_plan(from_huggingface(llama | off)).flops([99]) == compile_plan(from_huggingface(llama)).flops([99])
    dense, sparse = PUBLISHED["qwen3-30b-a3b"] | {"num_experts": 0}, PUBLISHED["qwen3-30b-a3b"]
    assert from_huggingface(dense | {"num_experts_per_tok": None}).model.num_moe_experts is None
    assert from_huggingface(sparse).model.num_moe_experts == 128


def test_the_indexer_stands_where_the_file_says() -> None:
    """GLM-5.2: by word, by letter, or in turns; each layer of 128 heads-free keys saves its projections and scores."""
    sizes = {"model_type": "glm_moe_dsa", "num_hidden_layers": 8, "hidden_size": 6144, "first_k_dense_replace": 8}
    flags = [1, 1, 1, 0, 0, 0, 1, 0]
    words = ["full" if flag else "shared" for flag in flags]
    files = (
        {"indexer_types": words},
        {"indexer_types": None, "index_topk_pattern": "FFFSSSFS"},
        {"index_topk_freq": 4, "index_skip_topk_offset": 3},
    )
    assert [from_huggingface(sizes | file).model.dsa_indexer_layers for file in files] == [flags] * 3
    assert from_huggingface(sizes).model.dsa_indexer_layers == [1] * 8
    everywhere, shared = (compile_plan(from_huggingface(sizes | file), "exact") for file in ({}, files[0]))
    tokens, pairs = 3000, 3000 * 3001 // 2
    # Keys and scores of an indexer with 32 heads of 128 on queries of rank 2048, forward only: it has no loss.
    indexer = 2 * (tokens * (2048 * 32 * 128 + 6144 * 128 + 6144 * 32) + pairs * 32 * (128 + 1))
    saved = everywhere.flops([tokens], passes="forward") - shared.flops([tokens], passes="forward")
    assert saved == 4 * indexer


def test_a_byte_latent_file_holds_its_transformers() -> None:
    """The fields of ``blt`` reach the place where they are priced; class defaults stand where a part is silent."""
    stack = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    file = {"model_type": "blt", "vocab_size": 260, "cross_attn_k": 2, "encoder_hash_byte_group_size": [3, 4],
            "local_attention_window_len": None, "encoder_config": stack | {"intermediate_size": 100},
            "decoder_config": stack | {"intermediate_size": 0, "odd": 1}, "global_config": {"num_hidden_layers": 3}}  # fmt: skip
    found = from_huggingface(file)
    assert found.not_counted == ("not recognized: decoder_config.odd=1 may change the work; if it does, that is not counted",)
    shape = read(found).byte_latent
    assert (shape.cross_attn_k, shape.local_attention_window_len, shape.encoder_hash_byte_group_size) == (2, None, [3, 4])
    assert (shape.encoder_config.intermediate_size, shape.decoder_config.intermediate_size) == (100, None)
    assert (shape.global_config.num_hidden_layers, shape.global_config.hidden_size) == (3, 2048)
    assert shape.patcher_config == StackShape(
        num_hidden_layers=14, hidden_size=768, num_attention_heads=12, intermediate_size=2048
    )


def test_every_field_of_every_class_is_read_or_known_to_be_irrelevant() -> None:
    """A config object as transformers makes it leaves nothing to report, but what transformers itself does not train."""
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for model_type, family in FAMILIES.items():
        if model_type in mapping and not family.inner:
            for sentence in from_huggingface(mapping[model_type]()).not_counted:
                assert not sentence.startswith("not recognized"), (model_type, sentence)


@pytest.mark.parametrize("published", [True, False], ids=["ratios", "kinds"])
def test_deepseek_v4(published: bool) -> None:
    """One ratio a layer, as the published file has it, or one word a layer, as transformers writes it."""
    recipe = load_recipe("deepseek-v4-flash")
    ratios = list(recipe.model.csa_compress_ratios)
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    layers = {"compress_ratios": ratios} if published else {"layer_types": [kinds[ratio] for ratio in ratios[:-1]]}
    found = from_huggingface({"model_type": "deepseek_v4", "hidden_size": 4096, **layers})
    recipe.model.mtp_num_layers, recipe.model.csa_compress_ratios = None, ratios[:-1]
    for convention in ("megatron", "exact"):
        counted = compile_plan(found, convention, framework="megatron").flops([4096, 300])
        assert counted == compile_plan(recipe, convention).flops([4096, 300])
    assert [sentence.split("=")[0] for sentence in found.not_counted] == ["mlp_layer_types"]
