"""``bridge compare``: every column is what ``bridge flops`` says of it."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan


def answer(capsys, command: str, *arguments: str):
    assert main([command, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_columns_are_what_flops_says(capsys):
    columns = answer(
        capsys, "compare", "model.seq_length=2048", "llama3-8b", "tiny", "model.num_layers=3", "--convention", "exact"
    )
    shared = "model.seq_length=2048"
    for column, words in zip(columns, (["llama3-8b", shared], ["tiny", shared, "model.num_layers=3"]), strict=True):
        report = answer(capsys, "flops", *words, "--convention", "exact")
        shown = report.keys() - {"table", "rank_memory"}
        assert {name: column[name] for name in shown} == {name: report[name] for name in shown}
    assert [column["overrides"] for column in columns] == [[], ["model.num_layers=3"]]
    assert columns[1]["relative"] == columns[1]["flops_per_token"] / columns[0]["flops_per_token"]


def test_options_of_the_last_model_may_follow_flags(capsys):
    columns = answer(capsys, "compare", "tiny", "--batch-size", "2", "model.num_layers=2", "tiny")
    assert [column["overrides"] for column in columns] == [["model.num_layers=2"], []]


def test_conventions_side_by_side(capsys):
    columns = answer(capsys, "compare", "gemma3-4b", "--convention", "megatron,maxtext,exact,executed", "--passes", "forward")
    config = load_recipe("gemma3-4b", validate=False)
    assert [column["convention"] for column in columns] == ["megatron", "maxtext", "exact", "executed"]
    for column in columns:
        plan = compile_plan(config, column["convention"])
        assert column["flops"] == plan.flops([config.model.seq_length], passes="forward")


def test_layouts_side_by_side(capsys):
    pp = "parallel.pipeline_model_parallel_size"
    columns = answer(capsys, "compare", "train.global_batch_size=64", *("llama3-8b", f"{pp}=2"), *("llama3-8b", f"{pp}=8"))
    assert [len(column["stages"]) for column in columns] == [2, 8]
    assert columns[0]["flops"] == columns[1]["flops"]
    assert columns[0]["pipeline"]["bubble"] < columns[1]["pipeline"]["bubble"]


def test_per_byte(capsys):
    per_token, per_byte = (answer(capsys, "compare", "llama3-8b", "tiny", *more) for more in ([], ["--bytes-per-token", "4.4,1"]))
    assert [column["flops_per_byte"] for column in per_token] == [None, None]
    first, second = (column["flops_per_token"] for column in per_token)
    assert [column["flops_per_byte"] for column in per_byte] == [pytest.approx(first / 4.4), second]
    assert per_byte[1]["relative"] == pytest.approx(float(second / (first / Fraction("4.4"))))


def test_the_table(capsys):
    assert main(["compare", "llama3-8b", "qwen3-8b", "--bytes-per-token", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sequences of 4,096 tokens, the shortest of the models' own lengths (others: 8,192)"
    assert lines[2].split() == ["llama3-8b", "qwen3-8b"]
    rows = {line[:16].strip(): line[16:].split() for line in lines}
    assert rows["FLOPs per token"] == ["48.25", "GFLOP", "49.03", "GFLOP"]
    assert rows["FLOPs per byte"] == ["12.06", "GFLOP", "12.26", "GFLOP"]
    assert rows["relative"] == ["1.000", "1.016"]


def test_one_length(capsys):
    """The shortest, what is asked for, or a mark."""

    def first(*words: str) -> str:
        assert main(["compare", *words]) == 0
        return capsys.readouterr().out.splitlines()[0]

    def tokens(*words: str) -> list[int]:
        return [column["tokens"] for column in answer(capsys, "compare", *words)]

    both = ("llama3-8b", "qwen3-8b")
    assert tokens(*both) == [4096, 4096]
    assert tokens(*both, "--sequence-length", "8k") == [8192, 8192]
    assert first(*both, "--sequence-length", "8k") == "sequences of 8,192 tokens"
    own = ("llama3-8b", "model.seq_length=8192", "llama3-8b", "model.seq_length=2048")
    assert tokens(*own) == [8192, 2048]
    assert first(*own) == "UNEQUAL: sequences of 2,048 and 8,192 tokens, as asked for"
    assert first(*both, "--sequence-lengths", "100,200") == "2 sequences, the same in every column"
    assert first("llama3-8b", "tiny", "model.seq_length=8192") == "sequences of 8,192 tokens"


def test_a_model_against_its_own_file(capsys, tmp_path):
    """A limit on positions is no length."""
    fields = {"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
              "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936,
              "max_position_embeddings": 40960}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    columns = answer(capsys, "compare", "qwen3-8b", str(tmp_path))
    assert [column["tokens"] for column in columns] == [4096, 4096]
    assert columns[1]["relative"] == 1.0


def test_what_cannot_be_built_is_said(capsys):
    assert main(["compare", "llama3-8b", "llama3-8b", "parallel.tensor_model_parallel_size=3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "cannot be built, llama3-8b parallel.tensor_model_parallel_size=3: model.num_attention_heads=32 is not divisible" in out
    )


def test_long_headings_are_numbered(capsys):
    assert main(["compare", "llama3-8b", "llama3-8b", "parallel.pipeline_model_parallel_size=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sequences of 8,192 tokens"
    assert lines[2:4] == ["(1) llama3-8b", "(2) llama3-8b parallel.pipeline_model_parallel_size=2"]
    assert lines[5].split() == ["(1)", "(2)"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: MODEL"),
        (["model.num_layers=2"], "'model.num_layers=2' is an option; name a model"),
        (["tiny", "tinny"], "did you mean tiny?"),
        (["tiny", "--convention", "exact,exat"], "'exat' is unknown (did you mean exact?); choose from megatron, maxtext, exact"),
        (["tiny", "tiny", "--bytes-per-token", "1,2,3"], "--bytes-per-token has 3 numbers for 2 models"),
        (["tiny", "tiny", "parallel.pipeline_model_parallel_size=3"], "tiny parallel.pipeline_model_parallel_size=3: "),
    ],
)  # fmt: skip
def test_errors(arguments, words, capsys):
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
