"""``bridge flops`` end to end: the numbers, the JSON, the table, and no torch."""

from __future__ import annotations

import importlib.util
import json
from fractions import Fraction
from math import prod

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations

LLAMA3_8B_AT_8192 = 421_645_529_382_912


def counted(capsys, *arguments: str) -> dict:
    assert main(["flops", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_has_no_effect_is_refused_or_said(capsys):
    assert main(["flops", "llama3-8b", "--image-patches", "1024"]) == 2
    assert "--image-patches has no effect because this model has no vision tower" in capsys.readouterr().err
    assert main(["flops", "llama3-8b", "parallel.tensor_model_parallel_size=3"]) == 0
    assert "cannot be built: model.num_attention_heads=32 is not divisible" in " ".join(capsys.readouterr().out.split())
    assert main(["flops", "llama3-8b", "--sequence-length", "2k", "--sequence-lengths", "1k"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_convention_of_the_recipes_callback(capsys):
    assert counted(capsys, "tiny_lora")["convention"] == "exact"
    assert counted(capsys, "tiny_lora", "--convention", "palm")["convention"] == "palm"
    assert counted(capsys, "llama3-8b")["convention"] == "megatron"


def test_images_by_their_size(capsys):
    """Patches of 14 pixels, merged two by two: 1024 x 768 are 37 x 27 merged ones."""
    by_size = counted(capsys, "qwen2.5-vl-7b", "--image-size", "1024x768,28x28")
    assert by_size["flops"] == counted(capsys, "qwen2.5-vl-7b", "--image-patches", f"{37 * 27 * 4},4")["flops"]
    for words, said in (
        (["llama3-8b", "--image-size", "28x28"], "no vision tower"),
        (["tiny", "--image-size", "28"], "1024x768"),
    ):
        assert main(["flops", *words]) == 2
        assert said in capsys.readouterr().err


def test_one_default_for_files(capsys, tmp_path):
    """4,096 tokens, or the limit on positions where that is less."""
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
              "intermediate_size": 128}  # fmt: skip
    for limit, tokens in ((131072, 4096), (512, 512)):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": limit}))
        assert counted(capsys, str(tmp_path))["tokens"] == tokens
    assert counted(capsys, str(tmp_path), "--sequence-length", "10M")["tokens"] == 10 * 2**20


def test_llama3_8b(capsys):
    report = counted(capsys, "llama3-8b")
    assert report == {
        "version": 1,
        "name": "llama3-8b",
        "source": "read",
        "convention": "megatron",
        "passes": "training",
        "sequences": 1,
        "tokens": 8192,
        "images": 0,
        "flops": LLAMA3_8B_AT_8192,
        "flops_per_token": LLAMA3_8B_AT_8192 // 8192,
        "parameters": {"total": 8_030_261_248, "active": 8_030_261_248, "trainable": 8_030_261_248},
        "components": report["components"],
        "flops_per_sample": LLAMA3_8B_AT_8192,
        "flops_per_step": 8 * LLAMA3_8B_AT_8192,
        "global_batch_size": 8,
        "formats": {"bf16": LLAMA3_8B_AT_8192},
        "number_format_recipe": None,
        "ideal_seconds": None,
        "stages": [LLAMA3_8B_AT_8192],
        "pipeline": {"imbalance": 1.0, "micro_batches": 8, "bubble": 0.0, "efficiency": 1.0},
        "table": report["table"],
        "not_counted": [],
        "layout_problems": [],
        "rank_memory": report["rank_memory"],
    }
    assert sum(report["components"].values()) == LLAMA3_8B_AT_8192
    # By hand: 2 FLOPs x 3 passes x 8192 tokens x 32 layers x 3 matrices of 4096 x 14336.
    assert report["components"]["mlp"] == 2 * 3 * 8192 * 32 * 3 * 4096 * 14336


@pytest.mark.parametrize("source", ["train_llama3_8b", "recipes/train_llama3_8b.yaml", "recipes/models/llama3-8b.yaml"])
def test_the_training_recipe_costs_what_its_model_costs(source, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert counted(capsys, source, "--convention", "megatron")["flops"] == LLAMA3_8B_AT_8192


@pytest.mark.parametrize(
    ("model", "overrides", "batch_size"),
    [
        ("gpt-oss-20b", ["model.seq_length=100"], 3),  # shorter than the window
        ("gemma3-1b", ["model.seq_length=4096"], 2),
        ("qwen2.5-0.5b", ["parallel.tensor_model_parallel_size=8", "model.seq_length=131072"], 2),  # 14 heads
        ("deepseek-v3.2", ["model.seq_length=8192"], 1),
        ("deepseek-v4-flash", [], 2),
        ("nemotron-h-8b", [], 1),
    ],
)
def test_a_batch_of_equal_sequences_is_the_public_functions(model, overrides, batch_size, capsys):
    config = load_recipe(model, overrides, validate=False)
    report = counted(capsys, model, *overrides, "--batch-size", str(batch_size))
    assert report["flops"] == num_floating_point_operations(config, batch_size)
    assert report["tokens"] == batch_size * config.model.seq_length


@pytest.mark.parametrize("convention", ["megatron", "exact", "executed"])
@pytest.mark.parametrize("passes", ["forward", "training", "hardware"])
def test_given_lengths_are_counted_exactly(convention, passes, capsys):
    lengths, patches = [4096, 512, 1], [256, 1024]
    plan = compile_plan(load_recipe("qwen3-vl-4b", validate=False), convention=convention)
    arguments = (
        "--convention",
        convention,
        "--passes",
        passes,
        "--sequence-lengths",
        "4096,512,1",
        "--image-patches",
        "256,1024",
    )
    report = counted(capsys, "qwen3-vl-4b", *arguments)
    assert report["flops"] == plan.flops(sequence_lengths=lengths, image_patches=patches, passes=passes)
    assert (report["sequences"], report["tokens"], report["images"]) == (3, 4609, 2)
    assert sum(report["components"].values()) == report["flops"]


def test_stages_of_an_uneven_pipeline_add_up(capsys):
    report = counted(capsys, "train_deepseek_v3")
    assert len(report["stages"]) == 16
    assert sum(report["stages"]) == report["flops"]
    # Stages 2 to 15 hold four layers each, and every one of these is MoE.
    assert len(set(report["stages"][1:-1])) == 1


def test_a_hugging_face_config(tmp_path, capsys):
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "config.json"):
        assert counted(capsys, str(source), "model.seq_length=8192")["flops"] == LLAMA3_8B_AT_8192


def test_overrides_may_follow_options(capsys):
    report = counted(capsys, "llama3-8b", "--batch-size", "2", "model.seq_length=4096", "model.num_layers=1")
    assert report["tokens"] == 8192
    assert report["components"]["mlp"] == 2 * 3 * 8192 * 3 * 4096 * 14336


GOLDEN = """\
tiny_moe: 1.41 million parameters, 1.01 million active
1 sequence, 256 tokens; convention megatron; passes: training

component / matmul      k x n  times  layers      forward        dgrad        wgrad  share
self_attention                                100.7 MFLOP  100.7 MFLOP  100.7 MFLOP  17.8%
  linear_qkv        128 x 256      1       4  67.11 MFLOP  67.11 MFLOP  67.11 MFLOP  11.9%
  linear_proj       128 x 128      1       4  33.55 MFLOP  33.55 MFLOP  33.55 MFLOP   5.9%
core_attention                                67.11 MFLOP  67.11 MFLOP  67.11 MFLOP  11.9%
  query_key            32 x 4      1       4  33.55 MFLOP  33.55 MFLOP  33.55 MFLOP   5.9%
  scores_value         32 x 4      1       4  33.55 MFLOP  33.55 MFLOP  33.55 MFLOP   5.9%
mlp                                           69.21 MFLOP  69.21 MFLOP  69.21 MFLOP  12.2%
  linear_fc1        128 x 704      1       1  46.14 MFLOP  46.14 MFLOP  46.14 MFLOP   8.2%
  linear_fc2        352 x 128      1       1  23.07 MFLOP  23.07 MFLOP  23.07 MFLOP   4.1%
moe                                           311.4 MFLOP  311.4 MFLOP  311.4 MFLOP  55.1%
  linear_fc1        128 x 352      2       3  138.4 MFLOP  138.4 MFLOP  138.4 MFLOP  24.5%
  linear_fc2        176 x 128      2       3  69.21 MFLOP  69.21 MFLOP  69.21 MFLOP  12.2%
  linear_fc1        128 x 352      1       3  69.21 MFLOP  69.21 MFLOP  69.21 MFLOP  12.2%
  linear_fc2        176 x 128      1       3   34.6 MFLOP   34.6 MFLOP   34.6 MFLOP   6.1%
output_layer                                   17.3 MFLOP   17.3 MFLOP   17.3 MFLOP   3.1%
  output_layer      128 x 264      1       1   17.3 MFLOP   17.3 MFLOP   17.3 MFLOP   3.1%

1,697,120,256 FLOP = 1.697 GFLOP
6.629 MFLOP per token, 1.697 GFLOP per sample, 27.15 GFLOP per step of 16 samples
memory of the fullest rank (EP 2, DP 2): 41.5 MB
  activations 21.7 MB, optimizer 12.1 MB, gradients 4.04 MB, weights 2.02 MB, logits 1.09 MB, working 541 kB
"""


def test_the_table_for_people(capsys):
    assert main(["flops", "tiny_moe"]) == 0
    assert capsys.readouterr().out == GOLDEN


@pytest.mark.parametrize("passes", ["forward", "training", "hardware"])
def test_the_rows_add_up_to_the_components(passes, capsys):
    report = counted(capsys, "train_deepseek_v3", "--passes", passes, "--convention", "exact")
    columns = {"forward": 1, "training": 3, "hardware": 4}[passes]
    for component, flops in report["components"].items():
        rows = [row for row in report["table"] if row["component"] == component]
        assert sum(sum(row[name] for name in ("forward", "dgrad", "wgrad", "recompute")[:columns]) for row in rows) == flops
    assert sum(row["share"] for row in report["table"]) == pytest.approx(1)


def test_the_table_equals_the_api(capsys):
    report = counted(capsys, "qwen3-next-80b-a3b", "--sequence-lengths", "4096,100", "--convention", "exact")
    plan = compile_plan(load_recipe("qwen3-next-80b-a3b", validate=False), "exact")
    rows = plan.table([4096, 100])
    assert len(report["table"]) == len(rows)
    for printed, row in zip(report["table"], rows, strict=True):
        assert printed == {**vars(row), "times": float(row.times), "share": pytest.approx(row.share)}


def test_the_framework_is_a_choice(capsys):
    plan = compile_plan(load_recipe("llama3-8b", validate=False), "exact", framework="transformers")
    report = counted(capsys, "llama3-8b", "--convention", "exact", "--framework", "transformers", "--sequence-lengths", "64")
    assert report["flops"] == plan.flops([64])
    assert {"linear_q", "linear_k", "linear_v"} <= {row["name"] for row in report["table"]}


def test_a_step_is_a_global_batch(capsys):
    report = counted(capsys, "train_llama3_8b", "--convention", "megatron")
    assert report["flops_per_step"] == 128 * report["flops_per_sample"] == 128 * LLAMA3_8B_AT_8192


def test_the_bubble_of_equal_stages(capsys):
    # 16 devices are 2 replicas of 8 stages: 32 micro-batches each. Almost without an output layer the stages are equal.
    overrides = ["parallel.pipeline_model_parallel_size=8", "train.global_batch_size=64", "model.vocab_size=1"]
    report = counted(capsys, "llama3-8b", *overrides, "--devices", "16", "--convention", "exact")
    assert report["pipeline"]["micro_batches"] == 32
    assert report["pipeline"]["bubble"] == pytest.approx(7 / (32 + 7), rel=1e-4)
    assert report["pipeline"]["imbalance"] == pytest.approx(1, rel=1e-4)


def test_the_pipeline_for_people(capsys):
    assert main(["flops", "train_deepseek_v3", "--devices", "1024", "--convention", "megatron"]) == 0
    out = capsys.readouterr().out
    assert "   15  80.88 TFLOP  7.59%\n" in out
    assert "max/mean work of the stages 1.215; with 128 micro-batches per step at least 24.8% of the devices' time is idle" in out


def test_equations(capsys):
    assert main(["flops", "gemma3-4b", "--convention", "exact", "--explain"]) == 0
    out = capsys.readouterr().out
    assert (
        "  2 x 4,096 tokens x 2560 x 20480 x 34 layers = 14,602,888,806,400 FLOP per pass\n"
        "  2560 = hidden_size\n"
        "  20480 = 2*ffn_hidden_size\n"
        "  shaped by gated_linear_unit\n"
    ) in out
    assert "window_pairs[1024] x 256 x 8 x 29 layers = " in out
    assert "  1024 = window_size\n" in out


def test_equations_hold(capsys):
    """Every printed product is the product of its printed factors, and the row's work."""
    assert main(["flops", "deepseek-v3.2", "--explain", "--sequence-lengths", "8192"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FLOP per pass")]
    report = counted(capsys, "deepseek-v3.2", "--sequence-lengths", "8192")
    assert len(lines) == len(report["table"])
    for line, row in zip(lines, report["table"], strict=True):
        product, _, work = line.removesuffix(" FLOP per pass").replace(",", "").partition(" = ")
        factors = [Fraction(factor.split()[0]) for factor in product.strip().split(" x ")]
        assert prod(factors) == int(work) == (row["forward"] or row["dgrad"])


def test_origins_as_json(capsys):
    report = counted(capsys, "llama3-8b", "--explain")
    origin = {row["name"]: row["origin"] for row in report["table"]}["linear_fc1"]
    assert origin == {
        "k": "hidden_size",
        "n": "2*ffn_hidden_size",
        "times": "1",
        "rows": [],
        "fields": ["hidden_size", "ffn_hidden_size"],
        "switches": ["gated_linear_unit"],
    }


def test_encoders_have_lengths_of_their_own(capsys):
    report = counted(capsys, "tiny", "model.encoder_num_layers=2", "--sequence-lengths", "10,20", "--encoder-lengths", "30,5")
    plan = compile_plan(load_recipe("tiny", ["model.encoder_num_layers=2"], validate=False))
    assert report["flops"] == plan.flops([10, 20], encoder_lengths=[30, 5]) > plan.flops([10, 20], encoder_lengths=[5, 5])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model-at-all"], "does not exist"),
        (["lama3-8b"], "did you mean llama3-8b?"),
        (["nowhere/config.json"], "nowhere/config.json"),
        (["llama3-8b", "model.num_layer=3"], "did you mean model.num_layers?"),
        (["llama3-8b", "--convention", "megatrn"], "(did you mean megatron?)"),
        (["llama3-8b", "--batch-size", "0"], "--batch-size: '0' must be a positive integer"),
        (["llama3-8b", "--sequence-lengths", "4096,x"], "--sequence-lengths: 'x' must be a positive integer"),
        (["llama3-8b", "--sequence-lengths", "4", "--batch-size", "2"], "exclude each other"),
        (["llama3-8b", "model.seq_length=null"], "model.seq_length is not set"),
        (["llama3-8b", "--passes", "backward"], "invalid choice: 'backward'"),
        (["llama3-8b", "--josn"], "unknown argument --josn (did you mean --json?)"),
        (["llama3-8b", "--devices", "6", "parallel.pipeline_model_parallel_size=4"], "--devices 6 is not a multiple of 4"),
        (
            ["llama3-8b", "--devices", "64", "parallel.pipeline_model_parallel_size=4"],
            "8 is not a multiple of train.micro_batch_size=1 x 16",
        ),
        (["llama3-8b", "parallel.pipeline_model_parallel_size=5"], "32 layers do not split"),
        (["llama3-8b", "model.hidden_size=null"], "model.hidden_size"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys):
    assert main(["flops", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("bridge: error: ")
    assert words in captured.err


#: llama3-8b at 8192 tokens: what no recipe quantizes, by hand: 2 products of half the square, and the output layer.
LLAMA3_8B_PLAIN = 2 * 3 * 8192 * (32 * 8192 * 4096 + 4096 * 128256)


def test_the_ideal_time_by_number_format(capsys):
    quantised = LLAMA3_8B_AT_8192 - LLAMA3_8B_PLAIN
    report = counted(capsys, "llama3-8b", "--number-format", "nvfp4", "--device-name", "NVIDIA B200")
    assert report["formats"] == {"fp4": quantised, "bf16": LLAMA3_8B_PLAIN}
    assert report["number_format_recipe"] == "nvfp4"
    assert report["ideal_seconds"] == pytest.approx(quantised / 9000e12 + LLAMA3_8B_PLAIN / 2250e12, rel=1e-15)
    report = counted(capsys, "llama3-8b", "--device-name", "NVIDIA B200")
    assert report["ideal_seconds"] == pytest.approx(LLAMA3_8B_AT_8192 / 2250e12, rel=1e-15)
    report = counted(capsys, "llama3-8b", "--number-format", "mxfp8", "--device-name", "NVIDIA A100-SXM4-80GB")
    assert report["ideal_seconds"] is None  # an A100 has no FP8


def test_number_formats_for_people(capsys):
    assert main(["flops", "llama3-8b", "--number-format", "mxfp8", "--device-name", "NVIDIA B200"]) == 0
    printed = capsys.readouterr().out
    assert "Number formats of mxfp8" in printed
    line = next(line for line in printed.splitlines() if line.strip().startswith("fp8"))
    assert line.split() == ["fp8", "343", "TFLOP", "81.36%", "4.5", "PFLOP/s", "0.07623", "s"]
    assert "ideal time of one device: 0.1112 s" in printed


# ---- traced models --------------------------------------------------------------------------------------------------

_MINE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 24), nn.Linear(24, 50)

    def forward(self, ids):
        return self.head(self.embed(ids))

def small():
    return Mine()

def nothing():
    return 3
"""


def test_a_module_is_traced_by_the_function_that_makes_it(capsys, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "mine_to_trace.py").write_text(_MINE)
    monkeypatch.chdir(tmp_path)
    report = counted(capsys, "--trace", "mine_to_trace:small", "--sequence-lengths", "10,3", "--convention", "exact")
    assert (report["source"], report["name"]) == ("traced", "mine_to_trace:small")
    # The table of the embedding is looked up; of the head all but the gradient of what is looked up runs.
    assert report["flops"] == 2 * 13 * 24 * 50 * 3
    assert report["parameters"]["total"] == 50 * 24 + 24 * 50 + 50
    assert counted(capsys, "--trace", "mine_to_trace:small", "model.seq_length=7")["tokens"] == 7
    assert main(["flops", "--trace", "mine_to_trace:small"]) == 0
    assert "parameters, traced" in capsys.readouterr().out
    for place, words in (
        ("mine_to_trace", "must be package.module:factory"),
        ("mine_to_trace:large", "has no attribute 'large'"),
        ("mine_to_trace:nothing", "return a torch.nn.Module"),
    ):
        assert main(["flops", "--trace", place]) == 2
        assert words in capsys.readouterr().err
    assert main(["flops"]) == 2
    assert "or --trace" in capsys.readouterr().err


def test_an_unknown_family_has_a_nominal_length(capsys, tmp_path):
    pytest.importorskip("transformers")
    small = {"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(small))
    report = counted(capsys, str(tmp_path / "config.json"))
    assert (report["source"], report["tokens"]) == ("traced", 64)
    assert counted(capsys, str(tmp_path), "model.seq_length=20", "--batch-size", "2")["tokens"] == 40
    assert main(["flops", str(tmp_path), "model.hidden_size=96"]) == 2
    assert "model.hidden_size" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_an_unknown_family_says_which_package_it_needs(missing, capsys, monkeypatch, tmp_path):
    """As where it is not installed; a trace that was made before is read without it."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48}))
    assert main(["flops", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model_type='openai-gpt' is not known" in said
    assert said.endswith(f"tracing a model needs the package {missing}, which is not installed: pip install {missing}")
