"""``bridge check``: what the API says, in a table, as JSON and in one sentence."""

from __future__ import annotations

import json

import pytest

from bridge.cli.main import main
from bridge.planning.check import check

NVIDIA = ["check", "llama3-8b", "--sequence-length", "8k", "--devices", "8", "--device-name", "H100",
          "--tokens-per-second", "13812", "--reported", "800TFLOP/s"]  # fmt: skip


def answer(capsys, *arguments: str):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_what_the_api_says(capsys):
    said = answer(capsys, *NVIDIA)
    found = check(
        "llama3-8b", sequence_length=8192, devices=8, device_name="H100", tokens_per_second="13812", reported="800TFLOP/s"
    )
    assert said == {"version": 1, **json.loads(json.dumps(found.to_dict()))}
    assert said["fits"] == ["executed", "palm_without_embedding"]


def test_the_table_and_the_sentence(capsys):
    assert main(NVIDIA) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "llama3-8b: 8.03 billion parameters"
    assert lines[1] == "8,192 tokens per row, 8 devices, 13,812 tokens/s per device, peak 989.4 TFLOP/s, reported 800 TFLOP/s"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["megatron"] == ["51.47", "GFLOP", "710.9", "TFLOP/s", "71.85%", "0.8886"]
    assert rows["executed"] == ["57.91", "GFLOP", "799.9", "TFLOP/s", "80.85%", "0.9999", "fits"]
    assert rows["embedding_counted"][:3] == ["executed", "61.06", "GFLOP"]
    assert "sparse_peak" not in rows  # it changes no TFLOP/s
    assert lines[-1].startswith("800 TFLOP/s is what executed counts")


def test_utilisation_by_step_time(capsys):
    """22 billion parameters on 8 A100: a step of 4 rows in 1.1 s, 41.5% (arXiv:2205.05198, table 5)."""
    fields = {"num_layers": 48, "hidden_size": 6144, "ffn_hidden_size": 24576, "num_attention_heads": 64, "vocab_size": 51200}
    words = [f"model.{name}={value}" for name, value in fields.items()]
    said = answer(capsys, "check", "gpt3-175b", *words, "--device-name", "A100 80GB", "--devices", "8", "--step-time", "1.10",
                  "--global-batch-size", "4", "--reported", "41.5%", "--parameters", "22.1B")  # fmt: skip
    assert said["fits"][0] == "executed"
    assert said["parameters_agree"] is True
    assert said["tokens_per_second"] == pytest.approx(4 * 2048 / 1.1 / 8)


def test_without_a_report(capsys):
    assert main(["check", "llama3-8b", "--tokens-per-second", "10000"]) == 0
    out = capsys.readouterr().out
    assert "usual difference" not in out
    assert out.splitlines()[-1] == "Nothing was reported; megatron gives 514.7 TFLOP/s."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reported", "41%", "--tokens-per-second", "1"], "fraction of a peak: give device_name or peak_flops"),
        (["--reported", "fast"], "'fast' must be a number such as"),
        (["--sequence-length", "0"], "must be a positive integer"),
        (["--assume", "full_sqare"], "did you mean full_square?"),
        (["--tokens-per-second", "1", "--step-time", "2"], "not allowed with argument --tokens-per-second"),
    ],
)
def test_errors(arguments, words, capsys):
    assert main(["check", "llama3-8b", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
