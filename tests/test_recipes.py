"""Every shipped recipe: it loads, says what it is for, and builds the model whose parameters were published."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bridge.config import ModelConfig, find_recipe, list_recipes, load_recipe, validate_layout
from bridge.flops import compile_plan
from bridge.flops.model_shape import ConfigError

MODELS = [path.stem for path in list_recipes() if path.parent.name == "models"]

# Parameters in the published checkpoints; without multi-token prediction, except in WITH_MTP.
# fmt: off
PARAMETERS = {
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824, "llama3.1-8b": 8_030_261_248,
    "llama3.3-70b": 70_553_706_496, "codellama-34b": 33_743_970_304, "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560, "qwen3-coder-480b-a35b": 480_154_875_392,
    "qwen3-next-80b-a3b-mtp": 81_324_862_720, "qwen2.5-vl-3b": 3_754_622_976, "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-72b": 73_410_777_344, "qwen3-vl-2b": 2_127_532_032, "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-30b-a3b": 31_070_754_032, "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984, "gemma2-27b": 27_227_128_320, "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168, "gemma3-12b": 11_766_034_176, "gemma3-27b": 27_009_346_304,
    "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552, "mistral-small-24b-2501": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_630_071_296, "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880, "gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672,
    "olmo2-7b": 7_298_617_344, "olmo2-13b": 13_716_198_400, "olmo2-32b": 32_234_279_936, "olmo3-7b": 7_298_011_136,
    "olmoe-1b-7b": 6_919_161_856, "phi-3-mini-3.8b": 3_821_079_552, "phi-4-14b": 14_659_507_200,
    "phi-4-mini-3.8b": 3_836_021_760, "mimo-7b": 7_833_409_536,
}
# Where only a rounded total was published: billions, and how far off the recipe may be.
BILLIONS = {
    "moonlight-16b-a3b": 15.96,
    "llama4-scout-17b-16e": 109, "llama4-maverick-17b-128e": 400, "qwen3-next-80b-a3b": 80, "qwen3.5-27b": 27,
    "qwen3.5-35b-a3b": 35, "qwen3.5-397b-a17b": 397, "gemma4-31b": 30.7, "gemma4-26b-a4b": 25.2, "deepseek-v3": 671,
    "deepseek-v3-mtp": 671, "deepseek-v3.2": 671, "glm-5": 744, "glm-5.2": 744, "deepseek-v4-flash": 284,
    "kimi-k2": 1040, "glm-4.5-355b-a32b": 355, "glm-4.6-355b-a32b": 355, "glm-4.5-air-106b-a12b": 106,
    "gpt3-175b": 174.6, "nemotron-mini-4b": 4.19, "nemotron-3-8b": 8.5, "nemotron-4-15b": 15.6,
    "nemotron-4-340b": 340, "nemotron-h-4b": 4.5, "nemotron-h-8b": 8.1, "nemotron-h-47b": 46.8, "nemotron-h-56b": 56,
    "nemotron-nano-9b-v2": 8.89, "nemotron-nano-12b-v2": 12.3, "nemotron-3-nano-30b-a3b": 31.6,
    "nemotron-3-super-120b-a12b": 120.6, "nemotron-3-super-120b-a12b-mtp2": 120.6, "nemotron-3-ultra-550b-a55b": 550,
}
WITH_MTP = {"qwen3-next-80b-a3b-mtp", "glm-4.5-355b-a32b", "mimo-7b"}
# fmt: on
TOLERANCE = 0.015

# What each training recipe is meant for: ranks.
TRAINING = {"tiny": 2, "tiny_moe": 2, "tiny_window": 2, "llama3_8b": 8, "qwen3_30b_a3b": 16, "deepseek_v3": 1024}


def total(name: str) -> int:
    config = load_recipe(name, validate=False)
    if name not in WITH_MTP and config.model.mtp_num_layers:
        if config.model.csa_compress_ratios:
            del config.model.csa_compress_ratios[-config.model.mtp_num_layers :]
        config.model.mtp_num_layers = None
    if config.model.hybrid_layer_pattern:
        config.model.hybrid_layer_pattern = config.model.hybrid_layer_pattern.partition("/")[0]
    return compile_plan(config).parameters()["total"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_equal_the_published_checkpoint(name):
    assert total(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_round_to_the_published_size(name):
    assert total(name) == pytest.approx(BILLIONS[name] * 1e9, rel=TOLERANCE)


def test_every_model_has_a_published_size_and_every_recipe_a_purpose():
    assert {*PARAMETERS, *BILLIONS} == set(MODELS)
    assert not PARAMETERS.keys() & BILLIONS.keys()
    assert set(TRAINING) == {path.stem for path in list_recipes()} - set(MODELS)


@pytest.mark.parametrize("name", TRAINING)
def test_training_recipes_fit_the_ranks_they_are_meant_for(name):
    config = load_recipe(name)
    validate_layout(config, TRAINING[name])
    assert [spec["_target_"] for spec in config.callbacks] == ["bridge.training.callbacks.ThroughputCallback"]
    with pytest.raises(ConfigError):
        validate_layout(config, TRAINING[name] + 1)


@pytest.mark.parametrize("path", list_recipes(), ids=lambda path: path.stem)
def test_recipes_begin_with_their_hardware(path: Path):
    assert path.read_text().startswith("# Hardware: ")


@pytest.mark.parametrize("name", MODELS)
def test_model_recipes_hold_only_what_differs_from_the_defaults(name):
    written = OmegaConf.to_container(OmegaConf.load(find_recipe(name)))
    assert set(written) == {"model"}
    defaults = ModelConfig()
    assert [key for key, value in written["model"].items() if value == getattr(defaults, key)] == []
