"""Every command in the documentation is run, or it is said here why not and what runs instead."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Command, commands, scripts
from launch import launch

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.config.validation import validate, validate_layout
from bridge.flops import compile_plan
from bridge.metrics.prices import price_lists

COMMANDS = commands()

#: Commands that need what no test machine has, or that other tests run: the words they begin with, and why.
ELSEWHERE = {
    "wandb sync": "needs a W&B account",
    "wandb leet": "a terminal program that runs until its user leaves it",
    "wandb login": "needs a W&B account",
    "bridge profile": "trains; tests/training/test_profile.py",
    "bridge explore": "serves until it is stopped; tests/explorer/test_browser.py starts it",
    "python -m pytest": "is what runs this",
    "python -m benchmarks": "minutes; its parts are imported by their own tests",
    "python -m tests.golden": "rewrites what tests/test_golden.py compares",
    "python -m tests.explorer.screenshots": "rewrites pictures",
    "python docs/generate.py": "tests/docs/test_generated.py",
    "python3 -m venv": "tests/test_packaging.py makes environments",
    "apt-get install": "changes the machine",
    ".venv/bin/pre-commit install": "writes into .git",
    "torchrun --nproc-per-node 8 -m bridge.integrations.megatron_lm": "tests/integrations/test_two_ranks.py, with a double",
    ".": "activates the environment",
    "cd": "a place",
    "source": "activates the environment",
}
#: Whole scripts: a phrase that they contain, and the test that does the same.
SCRIPTS = {"ip netns add": "tests/training/test_nodes.py"}
#: Recipes that two processes of a test machine train in seconds.
TRAINS_HERE = "tiny"


def starting(*programs: str) -> list[Command]:
    return [c for c in COMMANDS if c.words[0] in programs and not elsewhere(c)]


def elsewhere(command: Command) -> str | None:
    text = " ".join(command.words)
    return next((why for begin, why in ELSEWHERE.items() if text == begin or text.startswith(begin + " ")), None)


def is_training(command: Command) -> bool:
    return "train" in command.words and command.words[0].endswith(("torchrun", "bridge"))


BRIDGE = [c for c in starting("bridge") if not is_training(c)]
TRAINING = [c for c in COMMANDS if is_training(c)]
MAKE, PIP = starting("make"), starting("pip")


def test_nothing_is_left_out() -> None:
    """A new kind of command needs a way to be run."""
    known = {*BRIDGE, *TRAINING, *MAKE, *PIP}
    assert [str(c) for c in COMMANDS if c not in known and not elsewhere(c)] == []
    assert [page for page, text in scripts() if not any(phrase in text for phrase in SCRIPTS)] == []
    assert all((ROOT / test).exists() for test in SCRIPTS.values())


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "path/to").mkdir(parents=True)
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
              "intermediate_size": 128, "max_position_embeddings": 512}  # fmt: skip
    (folder / "path/to/config.json").write_text(json.dumps(fields))
    (folder / "runs/tiny").mkdir(parents=True)
    rows = [{"step": step, "throughput/tflops/device": 0.02 + step / 1e3, "lm loss": 4.0 - step / 10} for step in (5, 10, 15)]
    plans = [compile_plan("tiny", convention) for convention in ("megatron", "exact")]
    vector = {one.name: value for plan in plans for one, value in zip(plan.statistics, plan.measure([64] * 8), strict=True)}
    rows = [{**row, **{f"throughput/statistics/{name}": value for name, value in vector.items()}} for row in rows]
    facts = {"convention": "megatron", "prices": price_lists(plans)}
    (folder / "runs/tiny/metrics.summary.json").write_text(json.dumps(facts))
    (folder / "runs/tiny/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


@pytest.mark.parametrize("command", BRIDGE, ids=str)
def test_bridge(command: Command, somewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(somewhere)
    try:
        code = main(list(command.words[1:]))
    except SystemExit as end:
        code = end.code
    assert code in (0, None), capsys.readouterr().err
    assert capsys.readouterr().out


def _ranks(words: tuple[str, ...]) -> int:
    def value(option: str) -> int:
        given = [words[i + 1] for i, word in enumerate(words) if word == option]
        given += [word.split("=", 1)[1] for word in words if word.startswith(option + "=")]
        return int(given[0]) if given and given[0].isdigit() else 1

    return value("--nnodes") * value("--nproc-per-node")


@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_recipe_and_layout(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = command.words
    recipe, *overrides = words[words.index("train") + 1 :]
    cfg = load_recipe(recipe, overrides)
    validate(cfg)
    if words[0].endswith("torchrun"):
        validate_layout(cfg, _ranks(words))


@pytest.mark.all
@pytest.mark.slow
def test_training(somewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can run here runs, two steps each, one after the other as a reader would type it."""
    lines = [
        list(c.words[c.words.index("train") + 1 :])
        for c in TRAINING
        if TRAINS_HERE in c.words[c.words.index("train") + 1] and _ranks(c.words) == 2 and "--nnodes" not in c.words
    ]
    assert lines
    monkeypatch.chdir(somewhere)
    for command in BRIDGE:
        if command.words[1] == "pack":  # before it is trained on
            assert main(list(command.words[1:])) == 0
    done = launch(2, str(Path(__file__).parent / "run_commands.py"), str(somewhere), json.dumps(lines))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_make_target(command: Command) -> None:
    done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", PIP, ids=str)
def test_pip_extras(command: Command) -> None:
    """The extras are in setup.py (tests/test_packaging.py installs)."""
    call = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)
                and node.arg == "extras_require")  # fmt: skip
    known = {key.value for key in call.value.keys if isinstance(key, ast.Constant)}
    extras = {extra for found in re.findall(r"\[([a-z,]+)\]", shlex.join(command.words)) for extra in found.split(",")}
    assert extras <= known


def test_python_of_these_tests() -> None:
    """`bridge` in a shell is the program that was run above."""
    scripts = importlib.metadata.entry_points(group="console_scripts", name="bridge")
    assert {script.load() for script in scripts} == {main}
    assert sys.version_info >= (3, 10)
