"""The README's claims about other people's numbers, worked out."""

from fractions import Fraction
from pathlib import Path

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.config.schema import PeftConfig
from bridge.flops import compile_plan
from bridge.flops.statistics import Statistic
from bridge.training.utils.flop_utils import num_floating_point_operations

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_lora_reported_as_full_training() -> None:
    recipe = load_recipe("llama3-70b")
    full = compile_plan(recipe, "exact").flops([4096])
    recipe.peft = PeftConfig(kind="lora", dim=16, target_modules=["linear_qkv", "linear_proj"])
    assert f"{full / compile_plan(recipe, 'exact').flops([4096]):.2f}" == "1.47"
    assert "LoRA on Llama 3 70B (r = 16 on attention), 4,096 tokens per sequence | full training | 1.47 x too high |" in README


def test_windows_guessed_from_sums() -> None:
    window, lengths = 4096, [1024] * 16 + [16384]
    exact = Statistic("window_pairs", sizes=(window,)).sum(lengths)
    total, squares = sum(lengths), sum(length * length for length in lengths)
    by_squares = squares / 2  # Megatron's rule where the mean, 1928 tokens, is below the window
    by_weighted_mean = total * (window - window * (window - 1) / 2 / (squares / total))
    assert sum(lengths[:16]) == lengths[16]
    assert [f"{estimate / exact - 1:+.0%}" for estimate in (by_squares, by_weighted_mean)] == ["+112%", "+53%"]
    assert "half of the sum of s², or a window over the length sum s² / sum s | +112%, +53% |" in README
    # The mean length itself would be as far off on the other side.
    by_mean_length = len(lengths) * Fraction(total, len(lengths)) ** 2 / 2
    assert f"{float(by_mean_length / exact) - 1:+.0%}" == "-53%"


def test_a_frozen_tower_reported_as_trained() -> None:
    recipe = load_recipe("qwen2.5-vl-7b")
    images = [8192, 8192]
    trained = compile_plan(recipe, "exact").flops([4096], images)
    recipe.model.freeze_vision_model = True
    assert f"{trained / compile_plan(recipe, 'exact').flops([4096], images):.2f}" == "1.23"
    assert "4,096 text tokens, two images of 8,192 patches | full training | 1.23 x too high |" in README


@pytest.mark.parametrize("command", ["flops llama3-8b"])
def test_what_a_command_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    assert capsys.readouterr().out.strip() in README


def test_the_public_function() -> None:
    cfg = load_recipe("llama3-8b")
    assert num_floating_point_operations(cfg, batch_size=4, seqlen_sum=10000, seqlen_squared_sum=40000000) == 481736785920000
    assert "seqlen_squared_sum=40000000)  # 481736785920000" in README
