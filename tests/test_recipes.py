"""Every shipped recipe: it says what it is for, and it is the published model, to the parameter and to the FLOP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bridge.config import ConfigError, ModelConfig, find_recipe, list_recipes, load_recipe, validate_layout
from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations
from tests.flops.published import MODELS, reference

# Ranks that each training recipe is meant for.
TRAINING = {"tiny": 2, "tiny_moe": 2, "tiny_window": 2, "train_llama3_8b": 8,
            "train_qwen3_30b_a3b": 16, "train_deepseek_v3": 1024,
            "tiny_lora": 2, "train_llama3_70b_lora": 8, "train_qwen3_30b_a3b_lora": 8,
            "tiny_vl": 2, "tiny_vl_frozen": 2, "train_qwen3_vl_4b_frozen_tower": 8}  # fmt: skip

# How far a vendor's rounded total may be from the sum of the weights.
ROUNDING = 0.015


# Recipes that say more than megatron-core's fields can: the reference of the megatron convention is the model without.
BEYOND_MEGATRON = {
    "llama4-scout-17b-16e": {"attention_chunk_size": None},
    "gemma4-26b-a4b": {"global_kv_channels": None, "global_num_query_groups": None, "global_attention_k_eq_v": False},
}


# Models without a reference integer; tests/config/sources/test_huggingface_families.py holds them against their Hugging Face
# configuration.
# Gemma 4 E2B and E4B: the vendor's 5.1 and 8.0 billion include the towers for images (0.17) and sound (0.3).
MORE_MODELS = {"falcon-h1-0.5b": 521_411_104, "gemma4-e2b": 4.65e9, "gemma4-e4b": 7.5e9, "minimax-m2": 228.7e9}


def test_there_is_a_recipe_for_every_published_model():
    assert {path.stem for path in list_recipes()} == {*MODELS, *MORE_MODELS, *TRAINING}


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_has_the_published_parameters(name):
    published = MODELS[name]["parameters"]
    model = load_recipe(name, validate=False).model
    if published["note"] == "without_mtp":
        if model.csa_compress_ratios:
            del model.csa_compress_ratios[model.num_layers :]
        if model.hybrid_layer_pattern:
            model.hybrid_layer_pattern = model.hybrid_layer_pattern.partition("/")[0]
        model.mtp_num_layers = None
    total = compile_plan(model).parameters()["total"]
    if isinstance(published["total"], float):
        assert total == pytest.approx(published["total"], rel=ROUNDING)
    elif name == "moonlight-16b-a3b":
        assert total == pytest.approx(published["total"], rel=2e-7)  # the checkpoint also holds buffers
    else:
        assert total == published["total"]


@pytest.mark.parametrize("name", MORE_MODELS)
def test_a_recipe_has_about_the_stated_parameters(name):
    total, stated = compile_plan(load_recipe(name, validate=False)).parameters()["total"], MORE_MODELS[name]
    assert total == (stated if isinstance(stated, int) else pytest.approx(stated, rel=ROUNDING))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if "cases" in model])
def test_a_recipe_costs_what_the_model_costs(name):
    config = load_recipe(name, validate=False)
    for case in MODELS[name]["cases"]:
        config.model.seq_length = case["seq_length"]
        config.model.tensor_model_parallel_size = case["tensor_model_parallel_size"]
        known = replace(config, model=replace(config.model, **BEYOND_MEGATRON.get(name, {})))
        moments = (case.get(key) for key in ("seqlen_sum", "seqlen_squared_sum"))
        patches = case.get("num_vision_patches", 0)
        assert num_floating_point_operations(known, case["batch_size"], *moments, patches) == reference(case["megatron"])
        exact = compile_plan(config, "exact").flops(case["segments"], case.get("patches_per_image", ()))
        assert exact == reference(case["exact"])


@pytest.mark.parametrize("name", TRAINING)
def test_training_recipes_fit_the_ranks_they_are_meant_for(name):
    config = load_recipe(name)
    validate_layout(config, TRAINING[name])
    assert [spec["_target_"] for spec in config.callbacks] == ["bridge.training.callbacks.ThroughputCallback"]
    with pytest.raises(ConfigError):
        validate_layout(config, TRAINING[name] + 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_tiny_model_costs_the_same_on_every_layout(size):
    config = load_recipe("tiny", [f"parallel.tensor_model_parallel_size={size}"], validate=False)
    assert num_floating_point_operations(config, 16) == num_floating_point_operations(load_recipe("tiny"), 16)


@pytest.mark.parametrize("path", list_recipes(), ids=lambda path: path.stem)
def test_recipes_begin_with_their_hardware(path: Path):
    assert path.read_text().startswith("# Hardware: ")


@pytest.mark.parametrize("name", [*MODELS, *MORE_MODELS])
def test_model_recipes_hold_only_what_differs_from_the_defaults(name):
    written = OmegaConf.to_container(OmegaConf.load(find_recipe(name)))
    assert set(written) == {"model"}
    defaults = ModelConfig()
    assert [key for key, value in written["model"].items() if value == getattr(defaults, key)] == []
