"""The README's claims about other people's numbers, worked out."""

from bridge.config import load_recipe
from bridge.config.schema import PeftConfig
from bridge.flops import compile_plan
from bridge.flops.statistics import Statistic


def test_lora_reported_as_full_training() -> None:
    recipe = load_recipe("llama3-70b")
    full = compile_plan(recipe, "exact").flops([4096])
    recipe.peft = PeftConfig(kind="lora", dim=16, target_modules=["linear_qkv", "linear_proj"])
    assert f"{full / compile_plan(recipe, 'exact').flops([4096]):.2f}" == "1.47"


def test_windows_guessed_from_sums() -> None:
    window, lengths = 4096, [1024] * 16 + [16384]
    exact = Statistic("window_pairs", sizes=(window,)).sum(lengths)
    total, squares = sum(lengths), sum(length * length for length in lengths)
    by_mean_length = squares / 2  # the mean, 1928 tokens, is below the window
    by_weighted_mean = total * (window - window * (window - 1) / 2 / (squares / total))
    assert sum(lengths[:16]) == lengths[16]
    assert [f"{estimate / exact - 1:.0%}" for estimate in (by_mean_length, by_weighted_mean)] == ["112%", "53%"]


def test_a_frozen_tower_reported_as_trained() -> None:
    recipe = load_recipe("qwen2.5-vl-7b")
    images = [8192, 8192]
    trained = compile_plan(recipe, "exact").flops([4096], images)
    recipe.model.freeze_vision_model = True
    assert f"{trained / compile_plan(recipe, 'exact').flops([4096], images):.2f}" == "1.23"
