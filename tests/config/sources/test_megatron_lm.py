"""Arguments as Megatron-LM's own parser and validate_args leave them, held against the integers of its own formula."""

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.flops import compile_plan
from bridge.flops.reading import read

DATA = json.loads((Path(__file__).parents[2] / "data" / "megatron_lm_args.json").read_text())


def namespace(case, **changes):
    return SimpleNamespace(**{**DATA["base"], **case["args"], **changes})


def priced_by_megatron_lm(case):
    """Not where its formula leaves something out: an encoder, an indexer, windows."""
    args = namespace(case)
    return args.decoder_num_layers is None and args.experimental_attention_variant != "dsa" and not args.window_size


CASES = {case["name"]: case for case in DATA["cases"]}
GPT = next(case for case in DATA["cases"] if case["name"].startswith("gpt/"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if priced_by_megatron_lm(case)])
def test_real_arguments_equal_megatron_lms_own_number(name):
    case = CASES[name]
    container = SimpleNamespace(model=namespace(case), logger=SimpleNamespace(log_interval=1))
    flops = compile_plan(container, "megatron").flops([case["seq_length"]] * case["batch_size"])
    # Its formula runs in floats.
    assert float(abs(Fraction(flops) - Fraction(case["megatron_lm"])) / Fraction(case["megatron_lm"])) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_no_field_of_real_arguments_is_unknown(name):
    assert [s for s in read(namespace(CASES[name])).not_counted if s.startswith("not recognized")] == []


def test_a_gpt_has_no_encoder_though_validate_args_copies_its_depth():
    args = namespace(GPT)
    assert args.encoder_num_layers == args.num_layers
    assert read(args).shape.encoder_num_layers is None


def test_t5_has_a_decoder_of_its_own():
    case = next(case for case in DATA["cases"] if "t5" in case["name"])
    args = namespace(case)
    shape = read(args).shape
    assert (shape.num_layers, shape.encoder_num_layers) == (args.decoder_num_layers, args.encoder_num_layers)
    assert shape.seq_length == args.decoder_seq_length
    paths = {term.path.split(".")[0] for term in compile_plan(args).terms}
    assert {"encoder", "decoder"} <= paths


def test_an_encoder_is_told_by_the_model_type_too():
    kind = SimpleNamespace(name="encoder_and_decoder")
    shape = read(namespace(GPT, model_type=kind)).shape
    assert shape.encoder_num_layers == shape.num_layers
    assert read(namespace(GPT, model_type=SimpleNamespace(name="encoder_or_decoder"))).shape.encoder_num_layers is None


def test_padding_that_the_host_decided_wins():
    args = namespace(GPT, padded_vocab_size=50304, vocab_size=50257, tensor_model_parallel_size=8)
    output = {name: compile_plan(args, name).breakdown([1])["output_layer"] for name in ("megatron", "executed", "exact")}
    h = args.hidden_size
    assert output == {"megatron": 6 * h * 50304, "executed": 6 * h * 50304, "exact": 6 * h * 50257}
    assert compile_plan(args, "exact").not_counted == ()
    args.vocab_size = None
    assert compile_plan(args, "exact").breakdown([1])["output_layer"] == 6 * h * 50304
    (sentence,) = compile_plan(args, "exact").not_counted
    assert sentence.startswith("padded_vocab_size=50304: the size without padding is unknown")
    assert compile_plan(args, "megatron").not_counted == ()


def test_without_group_query_attention_every_head_has_its_own_keys():
    args = namespace(GPT, group_query_attention=False, num_query_groups=1)
    assert read(args).shape.key_value_heads == args.num_attention_heads


@pytest.mark.parametrize(
    ("name", "activation", "gated"),
    [("swiglu", "silu", True), ("quick_geglu", "quick_gelu", True), ("squared_relu", "squared_relu", False)],
)
def test_activations(name, activation, gated):
    off = dict.fromkeys(("swiglu", "quick_geglu", "squared_relu"), False)
    shape = read(namespace(GPT, **{**off, name: True})).shape
    assert (shape.activation, shape.gated_linear_unit) == (activation, gated)


def test_freeze_all_layers_runs_forward_only():
    plan = compile_plan(namespace(GPT, freeze_all_layers=True), "exact")
    assert plan.flops([128]) == plan.flops([128], passes="forward")
    assert plan.parameters()["trainable"] == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"moe_expert_capacity_factor": 1.25}, "moe_expert_capacity_factor=1.25"),
        ({"hybrid_context_parallel": True}, "hybrid_context_parallel=True"),
        ({"vision_model_type": "radio"}, "vision_model_type='radio'"),
        ({"perform_rl_step": True}, "perform_rl_step=True"),
        ({"tokenizer_type": "BertWordPieceCase"}, "tokenizer_type='BertWordPieceCase'"),
        ({"spec": ["my.module", "my_layer_spec"]}, "spec=['my.module', 'my_layer_spec']"),
        ({"a_flag_of_next_year": 3}, "not recognized: a_flag_of_next_year=3"),
    ],
)
def test_what_is_not_priced_is_named(changes, named):
    assert any(sentence.startswith(named) for sentence in read(namespace(GPT, **changes)).not_counted)


def test_options_of_a_script_in_brackets():
    case = next(
        case for case in DATA["cases"] if case["args"].get("recompute_modules") == ["[layernorm mla_up_proj mlp moe_act]"]
    )
    assert read(namespace(case)).shape.recompute_modules == ["layernorm", "mla_up_proj", "mlp", "moe_act"]


#: A small model in Megatron-LM's names, as its users print them.
SMALL = {
    "num_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "group_query_attention": True, "num_query_groups": 4,
    "kv_channels": 64, "ffn_hidden_size": 2816, "swiglu": True, "padded_vocab_size": 32000, "vocab_size": 32000,
    "make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 1, "seq_length": 2048, "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True, "position_embedding_type": "rope", "normalization": "RMSNorm",
    "multi_latent_attention": False, "num_experts": None, "mtp_num_layers": None, "bf16": True, "encoder_num_layers": 8,
    "encoder_seq_length": 2048,
}  # fmt: skip
LATENT = SMALL | {
    "group_query_attention": False, "num_query_groups": 1, "multi_latent_attention": True, "mtp_num_layers": 2,
    "q_lora_rank": 384, "kv_lora_rank": 256, "qk_head_dim": 64, "qk_pos_emb_head_dim": 32, "v_head_dim": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("args", "megatron", "exact"),
    [(SMALL, 1_716_913_176_576, 1_717_013_839_872), (LATENT, 2_995_088_523_264, 2_995_091_668_992)],
    ids=["dense", "latent attention and multi-token prediction"],
)
def test_arguments_by_hand(args, megatron, exact):
    container = SimpleNamespace(model=SimpleNamespace(**args))
    assert compile_plan(container, "megatron").flops([2048]) == megatron
    assert compile_plan(container, "exact").flops([2048]) == exact
    if args is SMALL:
        # 8 x (1024 x 1536 + 1024^2 + 3 x 1024 x 2816 + 2 x 1024) + 2 x 1024 x 32000 + 1024
        assert compile_plan(container).parameters()["total"] == 155_730_944


def test_paths_and_the_loops_own_entries_are_no_alarms():
    """What every launch has beside the model: folders, data, trackers, and what the loop writes into its arguments."""
    launch = {
        "save": "ckpt", "load": "ckpt", "save_interval": 100, "tensorboard_dir": "tb", "wandb_project": "p",
        "data_path": ["1.0", "corpus"], "data_cache_path": "cache", "tokenizer_model": "tok.json", "iteration": 3,
        "num_floating_point_operations_so_far": 1e15, "do_train": True, "ckpt_fully_parallel_save": True,
        "dataloader_type": "single", "logits_save_dtype": "fp16",
    }  # fmt: skip
    assert read(namespace(GPT, **launch)).not_counted == read(namespace(GPT)).not_counted
    misspelt = read(namespace(GPT, **launch, num_layrs=3)).not_counted
    assert misspelt[-1] == "not recognized: num_layrs=3; did you mean num_layers?"
