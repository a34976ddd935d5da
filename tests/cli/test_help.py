"""Every ``--help`` ends with examples that work."""

from __future__ import annotations

import shlex

import pytest

from bridge.cli import COMMANDS
from bridge.cli.main import main
from bridge.cli.parser import commands_of, make_parser

#: Commands whose examples ask nothing of this machine: no run, no account, no measurement, no minutes.
ANSWERED = {"flops", "compare", "check", "plan", "inference", "ledger", "recipes", "devices", "integrations", "completion"}


def examples_of(command: str) -> list[list[str]]:
    """The arguments of every example."""
    shown = commands_of(make_parser([command]))[command].format_help().partition("\nexamples:\n")[2].splitlines()
    lines = [line for line in shown if not line.startswith("  # ")]
    assert len(lines) * 2 == len(shown), "a wish, then a line to type"
    return [shlex.split(line.replace("torchrun --nproc-per-node 2 -m bridge", "bridge"))[1:] for line in lines]


EXAMPLES = [(command, words) for command in COMMANDS for words in examples_of(command)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_two_or_three_examples(command):
    examples = examples_of(command)
    assert 2 <= len(examples) <= 3
    assert {words[0] for words in examples} == {command}


@pytest.mark.parametrize("words", [words for _, words in EXAMPLES], ids=" ".join)
def test_an_example_is_understood(words):
    make_parser(words[:1]).parse_args(words)


@pytest.mark.parametrize("words", [words for command, words in EXAMPLES if command in ANSWERED], ids=" ".join)
def test_an_example_is_answered(words, capsys):
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out
    assert said.err == ""
