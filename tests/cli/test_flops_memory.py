"""The memory that ``bridge flops`` names is what planning has of the recipe's own layout and optimizer."""

from __future__ import annotations

import json

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.planning.buffers import Optimizer
from bridge.planning.layouts import Layout
from bridge.planning.memory import memory


def printed(capsys, *words):
    assert main(["flops", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rank_memory"]


@pytest.mark.parametrize(("recipe", "devices"), [("tiny", None), ("tiny_moe", 4), ("train_llama3_8b", 64)])
def test_a_recipe_is_held_by_its_layout(capsys, recipe, devices):
    cfg = load_recipe(recipe)
    layout = Layout.of(cfg, devices)
    expected = memory(compile_plan(cfg), layout, Optimizer.of(cfg), sequence_length=2048)
    words = (recipe, "--sequence-length", "2k", *(("--devices", str(devices)) if devices else ()))
    found = printed(capsys, *words)
    assert found["layout"] == str(layout)
    assert [(one["bytes"], one["parts"]) for one in found["stages"]] == [(one.total, one.parts) for one in expected]
    assert main(["flops", *words]) == 0
    assert "memory of the fullest rank" in capsys.readouterr().out


def test_the_line_has_the_largest_parts_first(capsys):
    """Adam, fp32 gradients, bf16 weights: 12, 4 and 2 bytes of 8,030,261,248 parameters."""
    assert main(["flops", "llama3-8b"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "memory of the fullest rank (one device): " in said
    assert "optimizer 96.4 GB, activations" in said
    assert "gradients 32.1 GB, weights 16.1 GB" in said


def test_what_does_not_train_or_has_no_layers_of_language_names_none(capsys):
    assert printed(capsys, "llama3-8b", "--passes", "forward") is None
