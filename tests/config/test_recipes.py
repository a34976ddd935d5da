"""Recipes are found by name and by path, however they are punctuated."""

from __future__ import annotations

import pytest

from bridge.config import ConfigError, find_recipe, list_recipes


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen2_5_0_5b", "qwen2-5-0.5b.yaml", "Qwen2.5-0.5B"])
def test_names_are_found_however_they_are_punctuated(name):
    assert find_recipe(name).name == "qwen2.5-0.5b.yaml"


def test_an_exact_name_wins_over_one_that_is_only_punctuated_alike():
    folder = list_recipes()[0].parent
    assert find_recipe("llama3-8b").parent.name == "models"
    assert find_recipe("train_llama3_8b").parent.name == "recipes"
    with pytest.warns(FutureWarning, match="recipe llama3_8b is now called train_llama3_8b"):
        assert find_recipe("llama3_8b") == folder / "train_llama3_8b.yaml"
    with pytest.warns(FutureWarning, match="is now called train_deepseek_v3"):
        assert find_recipe(folder / "deepseek_v3.yaml") == folder / "train_deepseek_v3.yaml"


def test_a_path_is_found_with_other_punctuation_too():
    folder = list_recipes()[0].parent
    assert find_recipe(folder / "models" / "llama3_8b.yaml") == folder / "models" / "llama3-8b.yaml"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tinny", "did you mean tiny?"),
        ("recipes/tinny_moe.yaml", "did you mean tiny_moe?"),
        ("nothing-like-it-at-all", "`bridge recipes` lists"),
        (".", "is a folder"),
    ],
)
def test_a_missing_recipe(recipe, words):
    with pytest.raises(ConfigError) as caught:
        find_recipe(recipe)
    message = str(caught.value)
    assert message.startswith(f"recipe {recipe} ")
    assert words in message
