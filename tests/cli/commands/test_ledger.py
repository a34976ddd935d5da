"""``bridge ledger``: the published exercise to the last digit, any model as the API counts it, and budgets."""

from __future__ import annotations

import json

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.planning.exhibits.lora_notebook import TRUE, forward_pass, generation
from bridge.planning.ledger import Ledger, OperationCost


def ledger(capsys, *arguments: str) -> dict:
    assert main(["ledger", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_exercise(capsys):
    plain, adapted = (
        ledger(capsys, "notebook"),
        ledger(capsys, "notebook", "--lora-rank", "4", "--batch-size", "4", "--steps", "1"),
    )
    assert plain["forward"]["total"] == 603419129072
    assert adapted["forward"]["total"] == 603793372400
    assert (adapted["step"]["total"], adapted["step"]["lora"]) == (7245520468800, 4490919936)
    assert adapted["spent"] == {"training": adapted["step"]}
    assert adapted["budget"]["percent"] == 100 * 7245520468800 / 10**17
    assert adapted["budget"]["steps_left"] == (10**17 - 7245520468800) // 7245520468800
    written = ledger(capsys, "notebook", "--generate", "512")
    assert written["spent"]["generation"]["total"] == 473172281951744


def test_the_lines_add_up(capsys):
    report = ledger(capsys, "notebook", "--tokens", "100", "--lora-rank", "8")
    columns = ("additions", "multiplications", "divisions", "exponentiations", "square_roots", "lora", "total")
    assert {name: sum(entry[name] for entry in report["entries"]) for name in columns} == report["forward"]
    assert report["forward"]["total"] == forward_pass(100, 8).total


def test_the_true_architecture_and_its_differences(capsys):
    report = ledger(capsys, "true", "--differences", "--generate", "3", "--stochastic")
    assert report["forward"]["total"] == 530118227184
    assert sum(item["change"] for item in report["differences"]) == 530118227184 - 603419129072
    assert report["spent"]["generation"]["total"] == generation(512, 3, stochastic=True, architecture=TRUE).total


def test_everything_that_is_asked_for_is_spent(capsys):
    more = ["--steps", "2", "--evaluations", "3", "--batch-size", "4", "--generate", "5", "--budget", "1e15", "--spent", "1e13"]
    report = ledger(capsys, "notebook", "--tokens", "64", *more)
    once = forward_pass(64).total
    assert {work: cost["total"] for work, cost in report["spent"].items()} == {
        "training": 2 * 4 * 3 * once,
        "evaluation": 3 * 4 * once,
        "generation": generation(64, 5).total,
    }
    spent = 10**13 + sum(cost["total"] for cost in report["spent"].values())
    assert (report["budget"]["spent"], report["budget"]["remaining"]) == (spent, 10**15 - spent)


def test_any_model(capsys):
    report = ledger(
        capsys, "qwen3-0.6b", "--tokens", "50", "--lora-rank", "2", "--batch-size", "3", "--generate", "4", "--stochastic"
    )
    counted = Ledger(load_recipe("qwen3-0.6b", ["peft={kind: lora, dim: 2}"], validate=False))
    forward = counted.cost([50])
    assert report["forward"]["total"] == forward.total
    assert report["step"]["total"] == 3 * counted.cost([50], passes="training").total
    vocabulary = 151936
    drawn = 4 * OperationCost(additions=vocabulary - 1, divisions=vocabulary, exponentiations=10 * vocabulary)
    assert report["spent"]["generation"]["total"] == (forward + counted.decode(50, 3) + drawn).total
    exact = ledger(capsys, "qwen3-0.6b", "--tokens", "50", "--convention", "exact")
    assert exact["forward"]["total"] == Ledger(load_recipe("qwen3-0.6b", validate=False), "exact").cost([50]).total


def test_the_table(capsys):
    assert main(["ledger", "notebook", "--lora-rank", "4", "--differences"]) == 0
    out = capsys.readouterr().out
    rows = {tuple(line.split()[:2]): line.split() for line in out.splitlines()}
    assert rows["core_attention", "softmax"][2:] == [
        "24", "87.91", "M", "88.08", "M", "880.8", "M", "1,056,792,576", "0.2%",
    ]  # fmt: skip
    assert "LoRA adds 374,243,328\n" in out
    assert "-19,685,965,824  sparse RoPE" in out
    assert "55,206 such steps still fit\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--differences"], "--differences is for the exercise: 'notebook' or 'true' instead of 'tiny'"),
        (["notebook", "model.num_layers=2"], "'notebook' has no options"),
        (["notebok"], "notebok does not exist"),
        (["tiny", "model.seq_length=null"], "model.seq_length is not set; add --tokens"),
        (["tiny", "--convention", "megatron"], "invalid choice: 'megatron'"),
    ],
)
def test_errors(arguments, words, capsys):
    assert main(["ledger", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
