"""The providers of the installed Megatron-Bridge, made by their own classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.config import load_recipe
from bridge.config.sources.megatron_core import OWN
from bridge.config.sources.megatron_fields import HARDWARE, NEUTRAL, READ, REPORTED
from bridge.flops import compile_plan
from tests.integrations import megatron_bridge_stubs

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def told():
    if megatron_bridge_stubs.root() is None:
        pytest.skip("megatron-bridge is not installed")
    command = [sys.executable, "-m", "tests.config.sources.providers"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def providers(told):
    return told["providers"]


def test_every_field_of_every_provider_is_declared(providers):
    assert len(providers) > 100
    declared = set(OWN) | READ | NEUTRAL | HARDWARE.keys() | REPORTED.keys()
    fields = {field for provider in providers.values() for field in provider["fields"] if not field.startswith("_")}
    assert fields - declared == set()


def test_providers_leave_nothing_unrecognised(providers):
    found = {name: provider["described"] for name, provider in providers.items() if provider["described"]}
    said = {name: one["not_counted"] for name, one in found.items() if one.get("not_counted")}
    assert list(said) == ["NemotronNano12Bv2VLModelProvider"]
    assert said.popitem()[1] == ["vision_model_type='radio': the vision tower is not counted"]
    errors = {one["error"] for one in found.values() if "error" in one}
    # Classes that several models share leave the sizes open, and one published class its heads.
    assert errors <= {f"model.{name} is missing: set it to a positive integer" for name in ("num_attention_heads",)} | {
        f"model.{name}=0 must be a positive integer" for name in ("num_layers", "hidden_size")
    }


@pytest.mark.parametrize(
    ("provider", "recipe"),
    [
        ("Llama3ModelProvider8B", "llama3-8b"),
        ("Llama31ModelProvider405B", "llama3.1-405b"),
        ("Qwen3ModelProvider8B", "qwen3-8b"),
        ("Qwen3MoEModelProvider30B_A3B", "qwen3-30b-a3b"),
        ("Gemma2ModelProvider9B", "gemma2-9b"),
        ("Gemma3ModelProvider4B", "gemma3-4b"),
    ],
)
def test_a_provider_is_the_recipes_model(providers, provider, recipe):
    # Llama's providers take the vocabulary from the tokenizer: ``providers`` has set one.
    plan = compile_plan(load_recipe(recipe, ["model.vocab_size=1024"] if recipe.startswith("llama") else [], validate=False))
    found = providers[provider]["described"]
    assert (found["flops"], found["parameters"]) == (str(plan.flops([4096])), plan.parameters()["total"])


def test_mixed_precision_is_written_over_the_model(told):
    """Every record of the installed Megatron-Bridge, by its name and as an object."""
    found = told["formats"]
    assert found["bf16_mixed"] == ["bf16", None, 0, 0]
    assert found["fp16-mixed"] == ["fp16", None, 0, 0]
    assert found["bf16_with_fp8_delayed_scaling_mixed"] == ["bf16", "delayed", 0, 0]
    assert found["fp16_with_mxfp8_mixed"] == ["fp16", "mxfp8", 0, 0]
    assert found["bf16_with_fp8_current_scaling_mixed"] == ["bf16", "tensorwise", 1, 1]
    assert found["nemotron_h_bf16_with_fp8_current_scaling_mixed"] == ["bf16", "tensorwise", 2, 2]
    # Its name notwithstanding.
    assert found["nanov2_bf16_with_fp8_current_scaling_mixed"] == ["bf16", "blockwise", 2, 2]
