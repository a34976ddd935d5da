"""``bridge flops`` end to end: the numbers, the JSON, the table, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations

LLAMA3_8B_AT_8192 = 421_645_529_382_912


def counted(capsys, *arguments: str) -> dict:
    assert main(["flops", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_llama3_8b(capsys):
    report = counted(capsys, "llama3-8b")
    assert report == {
        "name": "llama3-8b",
        "convention": "megatron",
        "passes": "training",
        "sequences": 1,
        "tokens": 8192,
        "images": 0,
        "flops": LLAMA3_8B_AT_8192,
        "flops_per_token": LLAMA3_8B_AT_8192 // 8192,
        "parameters": {"total": 8_030_261_248, "active": 8_030_261_248, "trainable": 8_030_261_248},
        "components": report["components"],
        "stages": [LLAMA3_8B_AT_8192],
        "not_counted": [],
    }
    assert sum(report["components"].values()) == LLAMA3_8B_AT_8192
    # By hand: 2 FLOPs x 3 passes x 8192 tokens x 32 layers x 3 matrices of 4096 x 14336.
    assert report["components"]["mlp"] == 2 * 3 * 8192 * 32 * 3 * 4096 * 14336


@pytest.mark.parametrize("source", ["llama3_8b", "recipes/llama3_8b.yaml", "recipes/models/llama3-8b.yaml"])
def test_the_training_recipe_costs_what_its_model_costs(source, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert counted(capsys, source)["flops"] == LLAMA3_8B_AT_8192


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
    report = counted(capsys, "deepseek_v3")
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


def test_the_table_for_people(capsys):
    assert main(["flops", "llama3-8b"]) == 0
    out = capsys.readouterr().out
    assert "llama3-8b: 8.03 billion parameters" in out
    assert "1 sequences, 8,192 tokens; convention megatron; passes: training" in out
    row = next(line for line in out.splitlines() if "linear_fc2" in line)
    assert row.split() == ["mlp", "linear_fc2", "14336", "x", "4096", "32", "30.79", "TFLOP", "3", "21.9%"]
    assert "421,645,529,382,912 FLOP = 421.6 TFLOP, 51.47 GFLOP per token" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model-at-all"], "does not exist"),
        (["lama3-8b"], "did you mean llama3-8b?"),
        (["nowhere/config.json"], "nowhere/config.json"),
        (["llama3-8b", "model.num_layer=3"], "did you mean model.num_layers?"),
        (["llama3-8b", "--convention", "megatrn"], "megatrn"),
        (["llama3-8b", "--batch-size", "0"], "--batch-size: '0' must be a positive integer"),
        (["llama3-8b", "--sequence-lengths", "4096,x"], "--sequence-lengths: 'x' must be a positive integer"),
        (["llama3-8b", "--sequence-lengths", "4", "--batch-size", "2"], "exclude each other"),
        (["llama3-8b", "model.seq_length=null"], "model.seq_length is not set"),
        (["llama3-8b", "--passes", "backward"], "invalid choice: 'backward'"),
        (["llama3-8b", "--josn"], "unknown argument --josn"),
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


def test_neither_torch_nor_megatron_is_imported():
    script = (
        "import sys\n"
        "sys.modules.update({name: None for name in ('torch', 'megatron', 'numpy', 'transformers', 'wandb')})\n"
        "from bridge.cli.main import main\n"
        "sys.exit(main(['flops', 'qwen3-30b-a3b', '--json']) or main(['recipes', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
