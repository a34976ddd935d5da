"""MaxText's own figures (PR 3592 and after), to the integer."""

import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.cli.main import main
from bridge.config.sources.maxtext import from_maxtext, patches_per_image, recognises
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
        "num_query_heads": 1, "num_kv_heads": 1, "head_dim": 1, "vocab_size": 1,
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
    ).model
    experts = sum(model.moe_layer_freq)
    assert [model.num_layers - experts, experts] == UNITS[name]["expected"]["dense_moe"]


def test_an_unknown_block_is_named():
    with pytest.raises(ConfigError, match="decoder_block='gpt5' is not known; choose from deepseek"):
        from_maxtext({"decoder_block": "gpt5"})


# ---- MaxText's formula, executed: one sequence of 8,192 tokens of configurations without a case of their own --------


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("deepseek3.2-671b", 2_163_490_991_112_192),
        ("deepseek4-284b", 711_221_619_720_192),
        ("deepseek2-236b", 1_519_637_275_607_040),
        ("gemma2-27b", 1_404_637_915_643_904),
        ("gemma4-31b", 1_613_395_874_807_808),
        ("gemma4-e2b", 126_381_560_168_448),
        ("gemma4-e4b", 243_295_938_674_688),
        ("gpt-oss-120b", 282_811_114_192_896),
        ("llama4-17b-128e", 892_746_533_437_440),
        ("mixtral-8x22b", 2_053_473_256_341_504),
        ("qwen2.5-7b", 387_925_741_142_016),
        ("qwen3-custom-30b-a3b", 219_623_152_680_960),
        ("qwen3-next-80b-a3b", 193_705_172_533_248),
        ("qwen3.5-35b-a3b", 160_272_073_359_360),
    ],
)
def test_whole_models_by_execution(name, flops):
    assert compile_plan(from_maxtext(DATA["configs"][name]), "maxtext").flops([8192]) == flops


# ---- every option, by hand ------------------------------------------------------------------------------------------

#: Multiply-accumulates of a token and layer: 8 x (4 + 2 x 2) x 3 = 192 for q, k, v; 12 x 8 = 96 on the way out; 3 x 8 x 16 = 384.
TINY = {
    "decoder_block": "llama2", "base_emb_dim": 8, "base_num_query_heads": 4, "base_num_kv_heads": 2, "head_dim": 3,
    "base_mlp_dim": 16, "base_num_decoder_layers": 4, "vocab_size": 10, "max_target_length": 8, "per_device_batch_size": 1,
}  # fmt: skip
LAYER, CORE, LOGITS = 192 + 96 + 384, 2 * 12 * 8 * 8 // 2, 80
#: Eight tokens, three passes of two operations: 151,296.
PLAIN = 6 * (8 * (4 * LAYER + LOGITS) + 4 * CORE)


def flops(convention="maxtext", **options):
    config = from_maxtext(TINY | options)
    return compile_plan(config, convention).flops([config.model.seq_length], config.image_patches) * config.sequences_per_step


def parts(convention="maxtext", **options):
    return compile_plan(from_maxtext(TINY | options), convention).breakdown([8])


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "base_moe_mlp_dim": 5}
#: Router, and two experts of three matrices.
MOE = 8 * 4 + 2 * 3 * 8 * 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 151_296),
        ({"per_device_batch_size": 3, "gradient_accumulation_steps": 5}, 15 * 151_296),
        ({"per_device_batch_size": 0.5}, 151_296 // 2),
        ({"use_dpo": True}, 151_296 * 4 // 3),
        # One matrix of keys and values less in each layer.
        ({"share_kv_projections": True}, PLAIN - 6 * 8 * 4 * 8 * 6),
        # A depth is a layer: no projection, no second output layer.
        ({"mtp_num_layers": 1}, PLAIN + 6 * (8 * LAYER + CORE)),
        ({"mtp_num_layers": 2, "use_dpo": True, "gradient_accumulation_steps": 3}, 4 * (PLAIN + 12 * (8 * LAYER + CORE))),
        ({"mlp_activations": ["gelu"]}, PLAIN - 6 * 8 * 4 * 128),
        # Whatever is windowed in OLMo 3, the formula sees everything.
        ({"decoder_block": "olmo3", "sliding_window_size": 4}, 151_296),
        ({"attention_type": "local_sliding", "sliding_window_size": 4}, 151_296),
        # All layers of Envy have experts in the formula; a dense block's too.
        ({"decoder_block": "envy", "interleave_moe_layer_step": 2, **EXPERTS}, PLAIN + 6 * 8 * 4 * (MOE - 384)),
        ({"decoder_block": "llama2", **EXPERTS}, PLAIN + 6 * 8 * 4 * (MOE - 384)),
        ({"decoder_block": "qwen3_moe", **EXPERTS}, PLAIN + 6 * 8 * 4 * (MOE - 384)),
        # Every second layer, with a shared expert; the first one dense; the shared one as wide as a dense MLP.
        ({"decoder_block": "llama4", "interleave_moe_layer_step": 2, "shared_experts": 1, "nope_layer_interval": 4,
          "chunk_attn_window_size": 8, **EXPERTS}, PLAIN + 6 * 8 * 2 * (MOE + 120 - 384)),
        ({"decoder_block": "gemma4", "sliding_window_size": 8, "shared_experts": 1, **EXPERTS}, PLAIN + 6 * 8 * 4 * MOE),
        # One global layer of six, with heads of five; keys and values are shared there alone.
        ({"decoder_block": "gemma4", "base_num_decoder_layers": 6, "sliding_window_size": 8, "global_head_dim": 5,
          "share_kv_projections": True},
         6 * (8 * (5 * LAYER + LOGITS) + 5 * CORE + 8 * (8 * 6 * 5 + 20 * 8 + 384) + CORE * 5 // 3)),
        # 12 -> 6 out of attention, experts in 6, 6 -> 8 back.
        ({"decoder_block": "qwen3_custom_moe", "attention_output_dim": 6, "moe_expert_input_dim": 6, **EXPERTS},
         6 * (8 * (4 * (192 + 12 * 6 + 6 * 4 + 2 * 3 * 6 * 5 + 6 * 8) + LOGITS) + 4 * CORE)),
        # Its depth is as wide as any model's.
        ({"decoder_block": "qwen3_custom_moe", "attention_output_dim": 6, "moe_expert_input_dim": 6, "mtp_num_layers": 1,
          **EXPERTS},
         6 * (8 * (4 * (192 + 12 * 6 + 6 * 4 + 2 * 3 * 6 * 5 + 6 * 8) + LOGITS + 288 + MOE) + 5 * CORE)),
        # Heads and MLP twice, then the width twice.
        ({"global_parameter_scale": 2}, 6 * (8 * (4 * (2 * LAYER) + LOGITS) + 4 * 2 * CORE)),
        ({"global_parameter_scale": 4}, 6 * (8 * (4 * (4 * LAYER) + 2 * LOGITS) + 4 * 2 * CORE)),
        ({"global_parameter_scale": 8}, 6 * (8 * (8 * (4 * LAYER) + 2 * LOGITS) + 8 * 2 * CORE)),
    ],
)  # fmt: skip
def test_options_by_hand(options, expected):
    assert flops(**options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 6 * (8 * (4 * LAYER + LOGITS) + 4 * 24 * 36)),
        # T(8) - T(4) pairs in three layers of four.
        ({"decoder_block": "olmo3", "sliding_window_size": 4}, 6 * (8 * (4 * LAYER + LOGITS) + 24 * (3 * 26 + 36))),
        ({"decoder_block": "envy", "interleave_moe_layer_step": 2, **EXPERTS},
         6 * (8 * (4 * LAYER + 2 * (MOE - 384) + LOGITS) + 4 * 24 * 36)),
        # Llama's layers have no experts, and keys and values of their own.
        ({**EXPERTS, "share_kv_projections": True}, 6 * (8 * (4 * LAYER + LOGITS) + 4 * 24 * 36)),
        # A depth has a projection of 2 x 8 x 8 and an output layer.
        ({"mtp_num_layers": 1}, 6 * (8 * (5 * LAYER + 2 * LOGITS + 128) + 5 * 24 * 36)),
    ],
)  # fmt: skip
def test_exact_counts_what_runs(options, expected):
    assert flops("exact", **options) == expected


def test_the_gate_of_qwen3_next_runs_but_is_not_in_the_formula():
    options = {"decoder_block": "qwen3_next", "inhomogeneous_layer_cycle_interval": 4}
    assert parts("exact", **options)["self_attention"] - parts(**options)["self_attention"] == 6 * 8 * 8 * 12
    assert parts(**options)["self_attention"] == 6 * 8 * (192 + 96)


@pytest.mark.parametrize(("block", "shared"), [("qwen3_next", 120), ("qwen3_5", 0)])
def test_a_depth_of_qwen3_5_forgets_the_shared_expert(block, shared):
    options = {"decoder_block": block, "inhomogeneous_layer_cycle_interval": 4, "shared_experts": 1, **EXPERTS}
    assert flops(**options, mtp_num_layers=1) - flops(**options) == 6 * (8 * (288 + MOE + shared) + CORE)


def test_engram():
    """Two n-gram sizes of two tables of width 5; two streams of 8; a convolution of 4 taps."""
    options = {"engram_layers": [1, 3], "engram_num_heads": 2, "engram_head_dim": 5, "mhc_expansion_rate": 2}
    deepseek = options | {"decoder_block": "deepseek", "attention_type": "mla", "engram_vocab_bases": [10, 20]}
    once = 20 * 16 + 20 * 8 + 16 + 4 * 16
    assert parts(**deepseek)["engram"] == 6 * 8 * 2 * once
    assert "hyper_connections" not in parts(**deepseek)
    assert parts("exact", **deepseek)["hyper_connections"] == 6 * 8 * 4 * 2 * 16 * 8
    # Primes from 10 and from 20 up, each used once: 11, 13, 23, 29; then 17, 19, 31, 37.
    assert from_maxtext(TINY | deepseek).model.engram_table_rows == [76, 104]
    # No other block has it, but the formula prices it in any.
    assert parts(**options)["engram"] == 6 * 8 * 2 * once
    assert "engram" not in parts("exact", **options)


def test_deepseek4():
    """One layer of each kind at 128 tokens, by the formula's own parts."""
    config = TINY | {
        "decoder_block": "deepseek4", "base_num_decoder_layers": 3, "compress_ratios": [0, 4, 128], "max_target_length": 128,
        "q_lora_rank": 6, "o_lora_rank": 2, "o_groups": 2, "sliding_window_size": 16, "base_num_kv_heads": 1, "head_dim": 4,
        "indexer_n_heads": 2, "indexer_head_dim": 3, "indexer_topk": 8, "mhc_expansion_rate": 2,
    }  # fmt: skip
    found = compile_plan(from_maxtext(config), "maxtext").breakdown([128])
    window = 2 * 16 * (128 * 16 - 128)
    compressed = 2 * 16 * 128 * 128 // 256
    chosen = 2 * 16 * 4 * (32 * 8 - 32)
    assert found["core_attention"] == 6 * (3 * window + compressed + chosen)
    queries, output = 8 * 6 + 6 * 16, 16 * 2 + 2 * 2 * 8
    assert found["self_attention"] == 6 * 128 * (3 * (queries + 8 * 4 + output) + 8 * 2 * 4 + 8 * 4 * 4)
    assert found["indexer"] == 6 * (128 * (6 * 6 + 8 * 2 + 8 * 12) + 128 * 128 // 8 * 2 * 4)
    # Maps of 16 values to 8; sums of 2 and 4 streams and half of 2, around both blocks.
    assert found["hyper_connections"] == 6 * 128 * 3 * 2 * (16 * 8 + 7 * 8)
    # Shorter than the window the formula goes below the whole triangle.
    short = compile_plan(from_maxtext(config), "maxtext").breakdown([12])["core_attention"]
    assert short == 6 * (3 * 2 * 16 * (12 * 16 - 128) + 2 * 16 * 144 // 256 + 2 * 16 * (12 * 3 - 18))


def test_heads_that_attention_type_gives():
    """The formula believes attention_type; DeepSeek's layers are latent whatever it says."""
    latent = {"kv_lora_rank": 6, "qk_nope_head_dim": 2, "qk_rope_head_dim": 1, "v_head_dim": 3, "q_lora_rank": 5}
    mla = 8 * 5 + 5 * 12 + 8 * 7 + 6 * 20 + 96
    assert parts(attention_type="mla", **latent)["self_attention"] == 6 * 8 * 4 * mla
    assert parts("exact", attention_type="mla", **latent)["self_attention"] == 6 * 8 * 4 * 288
    deepseek = {"decoder_block": "deepseek", **latent}
    assert parts(**deepseek)["self_attention"] == 6 * 8 * 4 * mla
    assert parts(attention_type="global", **deepseek)["self_attention"] == 6 * 8 * 4 * 288


# ---- vision towers --------------------------------------------------------------------------------------------------

QWEN3_VL = {
    "use_multimodal": True, "vision_encoder_block": "qwen3_vl", "image_size_for_vit": 8, "patch_size_for_vit": 2,
    "hidden_size_for_vit": 4, "intermediate_size_for_vit": 6, "num_attention_heads_for_vit": 2, "num_hidden_layers_for_vit": 2,
    "out_hidden_size_for_vit": 8, "num_position_embeddings_for_vit": 16, "deepstack_visual_indexes_for_vit": [0],
}  # fmt: skip


def test_a_tower_that_the_formula_takes_for_nothing():
    config = from_maxtext(TINY | QWEN3_VL)
    assert config.image_patches == (16,)
    assert config.not_counted == ()
    assert flops(**QWEN3_VL) == 151_296
    # Frozen to the end of the tower, deepstack included; the last merger trains.
    embedding, layer = 24 * 4, 4 * 16 + 2 * 24
    merger = 16 * 16 + 16 * 8
    forward = 16 * (embedding + 2 * layer) + 2 * 2 * 4 * 256 + 4 * 2 * merger
    exact = compile_plan(config, "exact")
    assert exact.flops([8], [16]) - exact.flops([8]) == 2 * forward + 2 * 2 * 4 * merger


def test_a_frozen_tower_costs_a_third_of_its_pass_in_the_reference():
    gemma = {"decoder_block": "gemma3", "sliding_window_size": 8, "use_multimodal": True, "image_size_for_vit": 56}
    assert flops(**gemma, use_dpo=True) * 3 == flops(**gemma) * 4
    assert flops(**gemma, model_name="gemma3-4b", use_dpo=True) * 3 == flops(**gemma) * 4
    # The formula goes by the model's name.
    assert flops(**gemma, model_name="mine") == 151_296


def test_a_tower_that_is_not_priced_is_named():
    gemma4 = TINY | {"use_multimodal": True, "vision_encoder_block": "gemma4", "image_size_for_vit": [672, 960]}
    assert from_maxtext(gemma4).not_counted == (
        "use_multimodal=True with vision_encoder_block='gemma4': this vision tower is not counted",
    )


# ---- what is read, and what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"capacity_factor": 1.25}, "capacity_factor=1.25: changes the work and is not counted"),
        ({"moba": True}, "moba=True: changes the work and is not counted"),
        ({"use_audio": True}, "use_audio=True: changes the work and is not counted"),
        ({"lora": {"enable_lora": True}}, "lora={'enable_lora': True}: changes the work and is not counted"),
        ({"trainable_parameters_mask": ["x"]}, "trainable_parameters_mask=['x']: changes the work and is not counted"),
        ({"use_dpo": True, "dpo": {"algo": "orpo"}},
         "dpo.algo='orpo': ORPO has no reference model, but its forward pass is counted, as MaxText does"),
        ({"decoder_block": "simple"}, "decoder_block='simple': priced as a transformer, as MaxText does"),
        ({"base_num_decoder_layrs": 3}, "not recognized: base_num_decoder_layrs=3; did you mean base_num_decoder_layers?"),
        ({"colour": "red"}, "not recognized: colour='red'"),
    ],
)  # fmt: skip
def test_what_is_not_counted_is_named(options, sentence):
    assert from_maxtext(TINY | options).not_counted == (sentence,)
    assert compile_plan(TINY | options, "maxtext").not_counted == (sentence,)


def test_what_cannot_change_the_count_is_silent():
    quiet = {"remat_policy": "minimal", "attention": "flash", "steps": 3, "capacity_factor": -1.0, "lora": {"enable_lora": False}}
    assert from_maxtext(TINY | quiet).not_counted == ()
    assert flops(**quiet) == 151_296


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_emb_dim": "wide"}, "base_emb_dim='wide' must be a whole number; MaxText's base.yml has 2048"),
        ({"base_num_decoder_layers": 0}, "num_decoder_layers=0 must be a positive integer: a model needs it"),
        ({"global_parameter_scale": 3}, "global_parameter_scale=3 must be a power of two"),
        ({"decoder_block": "mixtral", "num_experts": 8}, "moe_mlp_dim=-1 must be a positive integer: num_experts=8 needs it"),
        ({"decoder_block": "olmo3"}, "sliding_window_size=0 must be a positive integer: decoder_block='olmo3' needs it"),
        ({"mlp_activations": ["silu"] * 3}, "must have one activation, or two for a gated MLP"),
        ({"mlp_activations": "silu"}, "mlp_activations='silu' must be a list"),
        ({"engram_layers": [9]}, r"engram_layers=\[9\] must be layer numbers from 0 to 3"),
        ({"per_device_batch_size": 0}, "per_device_batch_size=0 must be a positive number"),
        ({"decoder_block": "qwen3_custom_moe", "attention_output_dim": 6, "moe_expert_input_dim": 5},
         "attention_output_dim=6 and moe_expert_input_dim=5 must be equal"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        from_maxtext(TINY | options)


# ---- files and objects ----------------------------------------------------------------------------------------------


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def tiny_file(folder, more=""):
    return write(folder, "models/tiny.yml", "".join(f"{name}: {value}\n" for name, value in TINY.items()) + more)


def test_a_yaml_file(tmp_path):
    path = tiny_file(tmp_path)
    assert recognises(path)
    assert compile_plan(from_maxtext(path), "maxtext").flops([8]) == 151_296
    assert main(["flops", str(path), "--convention", "maxtext", "--json"]) == 0


def test_the_command_line_reads_a_yaml_file(tmp_path, capsys):
    main(["flops", str(tiny_file(tmp_path)), "model.num_layers=8", "--convention", "maxtext", "--json"])
    assert json.loads(capsys.readouterr().out)["flops"] == 151_296 + 6 * 4 * (8 * LAYER + CORE)


def test_base_config_and_model_name_lead_to_files_beside(tmp_path):
    tiny_file(tmp_path)
    write(tmp_path, "sft.yml", "base_config: base.yml\nmax_target_length: 16\nvocab_size: 20\n")
    run = write(tmp_path, "dpo.yml", "base_config: sft.yml\nmodel_name: tiny\nuse_dpo: true\nmax_target_length: 8\n")
    config = from_maxtext(run)
    assert (config.name, config.model.vocab_size, config.model.seq_length, config.reference_model) == ("tiny", 10, 8, True)
    assert compile_plan(config, "maxtext").flops([8]) == 151_296 * 4 // 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base_config: base.yml\nmodel_name: llama3-8b\n",
            "model_name='llama3-8b' names models/llama3-8b.yml of MaxText's configs",
        ),
        ("base_config: other.yml\n", "base_config='other.yml' does not exist"),
        ("base_config: run.yml\n", "base_config forms a circle"),
        ("- a\n", "holds no options"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, text, message):
    path = write(tmp_path, "run.yml", text)
    with pytest.raises(ConfigError, match=message):
        from_maxtext(path)


def test_objects_and_enums():
    class Block(Enum):
        LLAMA2 = "llama2"

    options = SimpleNamespace(**TINY | {"decoder_block": Block.LLAMA2})
    assert recognises(options)
    assert compile_plan(options, "maxtext").flops([8]) == 151_296


def test_what_is_not_maxtext_is_not_recognised(tmp_path):
    assert not recognises({"model_type": "llama", "hidden_size": 8})
    assert not recognises(write(tmp_path, "recipe.yaml", "model:\n  num_layers: 2\n"))
    assert not recognises(tmp_path / "missing.yml")
