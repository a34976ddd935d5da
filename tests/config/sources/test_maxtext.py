"""MaxText's own figures (PR 3592 and after), to the integer."""

import json
from pathlib import Path

import pytest

from bridge.config.sources.maxtext import from_maxtext, patches_per_image
from bridge.flops import ConfigError, compile_plan

DATA = json.loads((Path(__file__).parents[2] / "data" / "maxtext.json").read_text())
WHOLE_MODELS = [case for case in DATA["cases"] if "config" in case["inputs"]]
UNITS = {case["id"].removeprefix("unit/"): case for case in DATA["cases"] if case["id"].startswith("unit/")}


@pytest.mark.parametrize("case", WHOLE_MODELS, ids=lambda case: case["id"])
def test_whole_models(case):
    inputs, expected = case["inputs"], case["expected"]
    config = DATA["configs"][inputs["config"]] | inputs
    sequences = inputs["per_device_batch_size"]
    images = [patches_per_image(config)] * sequences if inputs.get("use_multimodal") else []
    batch = ([inputs["max_target_length"]] * sequences, images)
    plan = compile_plan(from_maxtext(config), "maxtext")
    parts = plan.breakdown(*batch)
    assert plan.flops(*batch) == expected["total_flops"]
    assert parts["core_attention"] + parts.get("vision_attention", 0) == expected["attention_flops"]
    assert plan.not_counted == ()


@pytest.mark.parametrize("name", ["gemma4", "gemma4_shared_kv", "gemma4_e2b", "gemma4_e4b"])
def test_attention_of_gemma4_by_itself(name):
    """Only the attention's share, as MaxText's unit tests take it; feed-forward and embedding FLOPs are given numbers."""
    inputs, expected = UNITS[name]["inputs"], UNITS[name]["expected"]
    small = "model" in inputs
    config = inputs | {
        "decoder_block": "gemma4_small" if small else "gemma4",
        "mlp_dim": inputs.get("mlp_dim", 1),
        "vocab_size": 1,
    }
    plan = compile_plan(from_maxtext(config), "maxtext")
    parts = plan.breakdown([inputs["max_target_length"]] * inputs["per_device_batch_size"])
    weights = parts["self_attention"] + 3 * (inputs.get("ffn_flops_all_layers", 0) + inputs["embedding_flops"])
    if small:
        weights += parts["mlp"] + parts["per_layer_embeddings"]
    assert parts["core_attention"] / 1e12 == pytest.approx(expected["attention_tflops"], abs=5e-6)
    assert weights / 1e12 == pytest.approx(expected["weight_tflops"], abs=5e-6)


def test_routed_and_shared_experts():
    inputs = UNITS["routed_shared_ffn"]["inputs"]
    config = inputs | {
        "num_query_heads": 1, "num_kv_heads": 1, "head_dim": 1, "vocab_size": 1, "decoder_block": "mixtral",
    }  # fmt: skip
    parts = compile_plan(from_maxtext(config), "maxtext").breakdown([inputs["max_target_length"]], passes="forward")
    assert parts["mlp"] + parts["moe"] == UNITS["routed_shared_ffn"]["expected"]["forward_flops"]


@pytest.mark.parametrize("name", ["dense_moe_deepseek", "dense_moe_llama4"])
def test_dense_and_mixture_layers(name):
    inputs = UNITS[name]["inputs"]
    model = from_maxtext(
        inputs
        | {"num_experts": 8, "moe_mlp_dim": 8, "emb_dim": 8, "num_query_heads": 1, "vocab_size": 8, "mlp_dim": 8}
        | {"chunk_attn_window_size": 8, "nope_layer_interval": 4}
    )
    experts = sum(model.moe_layer_freq)
    assert [model.num_layers - experts, experts] == UNITS[name]["expected"]["dense_moe"]


def test_an_unknown_block_is_named():
    with pytest.raises(ConfigError, match="decoder_block='gpt5' is not known; known are deepseek"):
        from_maxtext({"decoder_block": "gpt5"})
