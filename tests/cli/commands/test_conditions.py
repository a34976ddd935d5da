"""Equal settings give equal numbers, whatever the command; what has no effect or cannot be is refused or said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.explorer.sources import Source, compiled
from bridge.flops import compile_plan


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


RUN = ("--tokens", "1T", "--devices", "1024", "--device-name", "H100", "--mfu", "40%")
#: Recipes with a callback, one without, bare models; and the convention of each.
COUNTED = {
    "tiny": "megatron",
    "tiny_lora": "exact",
    "tiny_moe": "megatron",
    "train_llama3_8b": "exact",
    "train_llama3_70b_lora": "exact",
    "gemma3-4b": "megatron",
    "deepseek-v3.2": "megatron",
}


@pytest.mark.all(but=["tiny*", "gemma3*"])
@pytest.mark.parametrize("length", ["1k", "20k"])
@pytest.mark.parametrize("recipe", COUNTED)
def test_every_command_counts_alike(recipe: str, length: str, capsys: pytest.CaptureFixture[str]) -> None:
    counted = printed(capsys, "flops", recipe, "--sequence-length", length)
    assert counted["convention"] == COUNTED[recipe]
    (column,) = printed(capsys, "compare", recipe, "--sequence-length", length)
    planned = printed(capsys, "plan", recipe, "--sequence-length", length, *RUN)
    checked = printed(capsys, "check", recipe, "--sequence-length", length)
    assert {report["convention"] for report in (counted, column, planned)} == {COUNTED[recipe]}
    assert column["flops"] == counted["flops"]
    assert counted["flops_per_token"] == column["flops_per_token"] == planned["flops_per_token"]
    way = next(way for way in checked["conventions"] if way["name"] == COUNTED[recipe])
    assert way["flops_per_token"] == float(counted["flops_per_token"])
    assert planned["seq_length"] == counted["tokens"] == int(length[:-1]) * 1024
    if "-" in recipe:  # the explorer has the bare models
        plan = compiled(Source(recipe), COUNTED[recipe])
        assert plan.parameters() == counted["parameters"]


def test_layouts_are_searched_by_the_recipes_convention(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--devices", "2", "--device-name", "H100", "--global-batch-size", "8")
    best = [printed(capsys, "plan", "tiny_lora", *options, *more)["layouts"][0]["mfu"]
            for more in ((), ("--convention", "exact"), ("--convention", "megatron"))]  # fmt: skip
    assert best[0] == best[1] != best[2]


def test_the_ledger_takes_the_recipes_convention(capsys: pytest.CaptureFixture[str]) -> None:
    found = {more: printed(capsys, "ledger", "tiny_lora", *more) for more in ((), ("--convention", "exact"))}
    assert found[()] == found["--convention", "exact"]
    assert found[()] != printed(capsys, "ledger", "tiny_lora", "--convention", "executed")
    assert printed(capsys, "ledger", "tiny") == printed(capsys, "ledger", "tiny", "--convention", "executed")


def test_columns_of_several_conventions_are_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    columns = printed(capsys, "compare", "tiny", "tiny_lora")
    assert [column["convention"] for column in columns] == ["megatron"] * 2
    columns = printed(capsys, "compare", "tiny_lora", "train_llama3_8b")
    assert [(column["convention"], column["tokens"]) for column in columns] == [("exact", 256)] * 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("flops llama3-8b --image-patches 256", "--image-patches has no effect"),
        ("flops llama3-8b --image-size 1024x768", "--image-size has no effect"),
        ("check llama3-8b --image-patches 256", "image_patches has no effect"),
        ("inference llama3-8b --prompt 9 --generate 2 --image-patches 256", "--image-patches has no effect"),
        ("flops llama3-8b --devices 3 parallel.tensor_model_parallel_size=2", "--devices 3 is not a multiple of 2"),
        (f"plan llama3-8b parallel.context_parallel_size=3 {' '.join(RUN)}", "--devices 1024 is not a multiple of 3"),
        ("check llama3-8b --devices 3 parallel.tensor_model_parallel_size=2", "devices=3 is not a multiple of the 2"),
    ],
)
def test_what_cannot_be_is_refused(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert error in captured.err


@pytest.mark.parametrize(
    "words", ["flops llama3-8b", "check llama3-8b", f"plan llama3-8b {' '.join(RUN[:2])} --devices 12 {' '.join(RUN[4:])}"]
)
def test_a_layout_that_cannot_be_built_is_said(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "parallel.tensor_model_parallel_size=3"]) == 0
    assert "cannot be built: model.ffn_hidden_size=14336 is not divisible" in capsys.readouterr().out


def test_ten_million_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    report = printed(capsys, "flops", "llama3-8b", "--sequence-length", "10M", "--convention", "exact")
    assert report["flops"] == compile_plan(load_recipe("llama3-8b", validate=False), "exact").flops([10 * 2**20])
