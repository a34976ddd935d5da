"""from_huggingface: what it accepts, what it reports, and that published config files give the published models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge.config import ConfigError, from_huggingface, load_recipe
from bridge.config.sources.huggingface_config import MAX_FILE_SIZE
from bridge.config.sources.huggingface_families import FAMILIES
from bridge.config.sources.huggingface_fields import DEFAULTS, NEUTRAL
from bridge.flops import compile_plan
from bridge.flops.reading import read
from bridge.flops.shapes import StackShape

MODELS = Path(__file__).parents[3] / "recipes/models"

QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "rope_theta": 1000000,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06,
}  # fmt: skip

#: Recipe -> the fields of the published config.json that decide something.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3,
    # Older than the config classes: no head_dim, RoPE's base beside the scaling.
    "llama3-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "rope_scaling": None,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "pretraining_tp": 1,
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 32768,
    },
    # null is not silence: this one has no window, though the class would assume one.
    "mistral-7b-v0.3": {
        "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen2-0.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 24,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": [], "sliding_window": None,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
        "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    },
    "kimi-k2": {
        "model_type": "kimi_k2", "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 64, "q_lora_rank": 1536, "n_routed_experts": 384, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "gemma2-2b": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    },
    "gemma4-e2b": {
        "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
        "num_key_value_heads": 1, "num_kv_shared_layers": 20, "use_double_wide_mlp": True,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    },
    "gemma4-e4b": {
        "model_type": "gemma4_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42,
        "num_key_value_heads": 2, "num_kv_shared_layers": 18,
    },
    "gemma4-26b-a4b": {
        "model_type": "gemma4_text", "hidden_size": 2816, "intermediate_size": 2112, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_global_key_value_heads": 2, "attention_k_eq_v": True, "sliding_window": 1024,
        "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "falcon-h1-0.5b": {
        "model_type": "falcon_h1", "vocab_size": 32784, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 36,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536, "mamba_n_heads": 24,
        "mamba_d_head": 64, "mamba_d_state": 128,
    },
    "minimax-m2": {
        "model_type": "minimax_m2", "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 256, "num_experts_per_tok": 8,
        "attn_type_list": [1] * 62, "rotary_dim": 64, "use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid",
        "use_routing_bias": True, "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1,
    },
    # The language model of the published file, which says only what differs from the class.
    "gemma3-4b": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "num_local_experts": 32,
        "num_experts_per_tok": 4, "experts_per_token": 4, "attention_bias": True, "swiglu_limit": 7.0,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "phi-4-mini-3.8b": {
        "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True, "sliding_window": None,
    },
    "olmo2-7b": {
        "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
    },
    # Older than text_config: the language model's fields lie beside vision_config.
    "qwen2.5-vl-3b": {
        "model_type": "qwen2_5_vl", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008,
        "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "use_sliding_window": False, "max_window_layers": 70,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 14, "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
}  # fmt: skip


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


def test_accepts_mappings_objects_files_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN3))
    expected = from_huggingface(QWEN3)
    for source in (file, str(file), tmp_path, str(tmp_path)):
        assert from_huggingface(source) == expected
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert compile_plan(from_huggingface(config)).flops([99]) == compile_plan(expected).flops([99])
    nested = transformers.Gemma3Config(text_config={"num_hidden_layers": 7})
    nested.save_pretrained(tmp_path)
    assert from_huggingface(tmp_path) == from_huggingface(nested)
    assert compile_plan(from_huggingface({"model_type": "gemma3", "text_config": {"num_hidden_layers": 7}})).flops(
        [2000]
    ) == compile_plan(from_huggingface(nested)).flops([2000])


def test_training_options_follow() -> None:
    model = from_huggingface({**QWEN3, "attention_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh"}).model
    assert (model.rotary_base, model.layernorm_epsilon, model.attention_dropout) == (1000000, 1e-6, 0.1)
    assert (model.activation_func, model.make_vocab_size_divisible_by) == ("gelu_tanh", 128)
    assert (model.max_position_embeddings, model.seq_length) == (40960, None)  # a limit is no length
    scaled = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 100278}
    model = from_huggingface({"model_type": "llama", "rope_parameters": scaled, **sizes}).model
    assert (model.rope_scaling, model.rope_scaling_factor, model.make_vocab_size_divisible_by) == (True, 8.0, 2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, ["model_type='lama'", "did you mean 'llama'?"]),
        ({"model_type": 7}, ["model_type=7", "must be text"]),
        ({"model_type": "bert", "max_seq_length": 256, "do_lower_case": True}, ["'bert'", "neither a depth nor a width"]),
        ({"model_type": "gemma3", "vision_config": {}}, ["'gemma3'", "neither a depth nor a width"]),
        ({"hidden_size": 8}, ["model_type is missing"]),
        ({**QWEN3, "hidden_size": 0}, ["hidden_size", "0"]),
        ({**QWEN3, "layer_types": ["linear_attention"] * 28}, ["layer_types", "'linear_attention'", "sliding_attention"]),
        ("nowhere/config.json", ["nowhere/config.json", "No such file", "config.json or a folder"]),
        (3, ["int", "path"]),
    ],
)
def test_errors_name_the_field_and_the_remedy(config: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        from_huggingface(config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}"])
def test_files_that_are_no_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json .*(JSON|nested too deeply)"):
        from_huggingface(tmp_path)


def test_only_regular_files_of_a_size_are_opened(tmp_path: Path) -> None:
    """A pipe or a device would be waited for, or read without end."""
    os.mkfifo(tmp_path / "pipe.json")
    for file in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            from_huggingface(file)
    with (tmp_path / "config.json").open("w") as large:
        large.truncate(MAX_FILE_SIZE + 1)
    with pytest.raises(ConfigError, match=f"has more than {MAX_FILE_SIZE} bytes"):
        from_huggingface(tmp_path)


def test_unknown_fields_are_reported_and_reach_the_plan() -> None:
    assert from_huggingface(QWEN3).not_counted == ()
    strange = from_huggingface({**QWEN3, "extra_experts": 3, "switched_off": False, "bos_token_id": 1})
    (sentence,) = strange.not_counted
    assert sentence == "not recognized: extra_experts=3 may change the work; if it does, that is not counted"
    assert sentence in compile_plan(strange).not_counted


def test_parts_that_are_not_counted_are_named() -> None:
    file = {"model_type": "gemma4", "text_config": PUBLISHED["gemma4-e2b"], "vision_config": {"hidden_size": 768}}
    assert "vision_config" in from_huggingface(file).not_counted[0]
    (sentence,) = from_huggingface(PUBLISHED["deepseek-v3"] | {"num_nextn_predict_layers": 1}).not_counted
    assert sentence.startswith("num_nextn_predict_layers=1:")
    assert "model.mtp_num_layers=1" in sentence
    inner = {"model_type": "qwen3_vl", "text_config": {"odd_one": 1}, "vision_config": {"odd_two": 2}}
    places = [sentence.split("=")[0] for sentence in from_huggingface(inner).not_counted]
    assert places == ["not recognized: text_config.odd_one", "not recognized: vision_config.odd_two"]


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


def test_names_of_other_families_are_no_misspellings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(values: Any) -> None:
        raise ConfigError("not traced here")

    monkeypatch.setattr("bridge.tracing.trace", refuse)
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for model_type in mapping.keys() - FAMILIES.keys():
        with pytest.raises(ConfigError) as error:
            from_huggingface({"model_type": model_type, "hidden_size": 8})
        assert "did you mean" not in str(error.value), model_type


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


def test_defaults_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from tests.config.sources.write_huggingface_defaults import class_defaults

    assert json.loads(json.dumps(class_defaults())) == DEFAULTS, "run tests/config/sources/write_huggingface_defaults.py"


def test_every_field_of_every_class_is_read_or_known_to_be_irrelevant() -> None:
    """A config object as transformers makes it leaves nothing to report, but what transformers itself does not train."""
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for model_type, family in FAMILIES.items():
        if model_type in mapping and not family.inner:
            for sentence in from_huggingface(mapping[model_type]()).not_counted:
                assert not sentence.startswith("not recognized"), (model_type, sentence)


def test_neutral_fields_are_not_read() -> None:
    """What is read cannot be neutral, except what only training uses."""
    for_training = {"initializer_range", "partial_rotary_factor", "routed_scaling_factor", "n_group", "topk_group",
                    "router_aux_loss_coef", "rope_parameters", "rope_scaling", "rope_theta", "swiglu_limit"}  # fmt: skip
    read = {name for family in FAMILIES.values() for name in family.fields.values() if isinstance(name, str)}
    assert read & NEUTRAL <= for_training


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = f"""
import sys
from bridge.config import from_huggingface
from bridge.flops import compile_plan
compile_plan(from_huggingface({QWEN3!r})).flops([8])
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3", "hidden_size": "many"}, "hidden_size='many' in the Hugging Face config must be a number"),
        (
            PUBLISHED["llama3-8b"] | {"hidden_size": None},
            "hidden_size=None in the Hugging Face config must be a positive integer",
        ),
        (QWEN3 | {"hidden_size": 64.0}, "hidden_size=64.0 in the Hugging Face config must be a number: whole, 0 to 2147483647"),
        (QWEN3 | {"vocab_size": 10**30}, "vocab_size=10+ in the Hugging Face config must be a number: whole"),
        (QWEN3 | {"vocab_size": 10**5000}, "vocab_size=<int> in the Hugging Face config must be a number: whole"),
        (QWEN3 | {"num_hidden_layers": 20_001}, "num_hidden_layers=20001 .* must be a number: whole, 0 to 20000"),
        (QWEN3 | {"layer_types": ["full_attention"] * 20_001}, "layer_types=.* must be a list of words, at most 20000"),
        (QWEN3 | {"layer_types": [[]]}, "layer_types=.* must be a list of words"),
        (QWEN3 | {"tie_word_embeddings": "no"}, "tie_word_embeddings='no' .* must be true or false"),
        (QWEN3 | {"rope_theta": float("nan")}, "rope_theta=nan .* must be a number"),
        (QWEN3 | {"rope_parameters": {"partial_rotary_factor": 2}}, "rope_parameters.partial_rotary_factor=2 .* from 0 to 1"),
        ({"model_type": "qwen2_5_vl", "text_config": 3}, "text_config=3 in the Hugging Face config must be an object"),
        ({"model_type": "qwen2_5_vl", "vision_config": "x"}, "vision_config='x' in the Hugging Face config must be an object"),
        (
            {"model_type": "falcon_h1", "hidden_size": 64, "num_hidden_layers": 15_000},
            "30000 layers are more than the maximum",
        ),
    ],
)
def test_values_of_the_wrong_kind_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface(change)


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
