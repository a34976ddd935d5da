"""The command line itself: version, recipes, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import bridge
from bridge.cli.commands.train import OLDEST
from bridge.cli.main import main
from bridge.cli.parser import commands_of, make_parser
from bridge.config import list_recipes


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_the_module_runs():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bridge {bridge.__version__}\n", "")


def test_recipes_as_json(capsys):
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == [str(path) for path in list_recipes()]
    llama = next(row for row in rows if row["name"] == "llama3-8b")
    assert llama["kind"] == "model"
    assert llama["hardware"] == "4 or more devices of 80 GB to train all weights (about 18 bytes each, 145 GB)."


def test_recipes_as_tables(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    training, models = out.split("Models, to count")
    assert "tiny_moe" in training
    assert "deepseek-v3-mtp" in models


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["flps"], "(did you mean flops?)"),
        (
            ["flops", "tiny", "--sequence-length", "5", "--bath-size", "2"],
            "unknown argument --bath-size (did you mean --batch-size?)",
        ),
        (["train"], "the following arguments are required: recipe"),
        (["train", "tinny"], "did you mean tiny?"),
        (["train", "tiny", "train.train_iter=3"], "did you mean train.train_iters?"),
        (["train", "tiny", "parallel.tensor_model_parallel_size=3"], "model.num_attention_heads=4"),
        (["recipes", "now"], "unknown argument now"),
    ],
)
def test_configuration_errors_end_with_2(arguments, words, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("bridge: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_one_message_a_job():
    first, second = (run("train", "tinny", RANK=rank, WORLD_SIZE="2") for rank in "01")
    assert first.returncode == second.returncode == 2
    assert first.stderr == "bridge: error: recipe tinny does not exist; did you mean tiny?\n"
    assert second.stderr == ""


WITHOUT_PACKAGES = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "megatron", "numpy", "transformers", "wandb", "gradio", "plotly")))
for line in sys.argv[1:]:
    sys.argv = ["bridge", *line.split()]
    try:
        runpy.run_module("bridge", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, line
"""


def test_everything_but_training_runs_on_a_bare_python():
    device = "--device-name h100"
    lines = [
        "flops qwen3-30b-a3b --explain",
        "compare tiny llama3-8b --convention megatron,exact",
        f"plan llama3-8b --tokens 1T --devices 8 --mfu 0.4 {device}",
        f"inference llama3-8b --prompt 90 --generate 9 {device}",
        "ledger notebook --lora-rank 4 --differences",
        "devices",
        "recipes",
    ]
    commands = [*lines, *(f"{line} --json" for line in lines), "completion bash"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES, *commands], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hidden_size" in done.stdout


def test_training_says_what_it_needs():
    code = "import sys; sys.modules['torch'] = None; from bridge.cli.main import main; sys.exit(main(['train', 'tiny']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "training needs torch 2.6 or newer, but it is not installed; pip install torch" in done.stderr


@pytest.mark.parametrize(
    ("package", "found", "needed"), [("torch", "2.5.1+cu124", "2.6"), ("megatron-core", "0.12.0rc1", "0.16")]
)
def test_a_version_that_is_too_old_is_one_sentence(monkeypatch, capsys, package, found, needed):
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: found if name == package else installed(name))
    assert main(["train", "tiny"]) == 2
    said = f"training needs {package} {needed} or newer, but {found} is installed; pip install --upgrade {package}"
    assert capsys.readouterr().err.endswith(f"bridge: error: {said}\n")


def test_the_oldest_versions_are_those_of_the_package():
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    assert all(f'"{package}>={version}"' in setup for package, version in OLDEST.items())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_a_run_time_error(unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bridge", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "bridge: error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("command", list(commands_of(make_parser())))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: bridge {command}")


@pytest.mark.parametrize("output", ["", "--json"])
def test_a_reader_that_stops_early_is_no_error(output):
    command = f"{sys.executable} -m bridge recipes {output} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
