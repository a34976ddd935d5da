"""The completion script, run by a real shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bridge.cli.main import main
from bridge.cli.parser import commands_of, make_parser


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What the shell offers for a line; the last word is the one being written."""
    from contextlib import redirect_stdout

    path = tmp_path_factory.mktemp("completion") / "bridge.bash"
    with path.open("w") as file, redirect_stdout(file):
        assert main(["completion", "bash"]) == 0

    def offers(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = f'source "{path}"; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _bridge; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return offers


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("bridge", "inf"), ["inference"]),
        (("bridge", ""), list(commands_of(make_parser()))),
        (("bridge", "flops", "--conv"), ["--convention"]),
        (("bridge", "flops", "--convention", "e"), ["exact", "executed"]),
        (("bridge", "flops", "qwen3-next"), ["qwen3-next-80b-a3b-mtp", "qwen3-next-80b-a3b"]),
        (("bridge", "compare", "tiny", "model.num_qu"), ["model.num_query_groups="]),
        (("bridge", "train", "tiny", "peft.di"), ["peft.dim="]),
        (("bridge", "plan", "tiny", "--number-format", "bf"), ["bf16"]),
        (("bridge", "completion", "z"), ["zsh"]),
        (("bridge", "flops", "nothing-of-this"), []),
    ],
)
def test_offers(words, offered, complete):
    assert sorted(complete(*words)) == sorted(offered)


def test_zsh_loads_the_same_functions(capsys):
    assert main(["completion", "zsh"]) == 0
    assert "autoload -U +X bashcompinit && bashcompinit" in capsys.readouterr().out
    assert main(["completion", "fishy"]) == 2


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed: apt-get install fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bridge inf", ["inference"]),
        ("bridge flops --convention e", ["exact", "executed"]),
        ("bridge flops --conv", ["--convention"]),
        ("bridge compare tiny model.num_qu", ["model.num_query_groups="]),
        ("bridge plan tiny --number-format bf", ["bf16"]),
        ("bridge completion f", ["fish"]),
    ],
)
def test_fish_offers(line, offered, tmp_path, capsys):
    assert main(["completion", "fish"]) == 0
    (tmp_path / "bridge.fish").write_text(capsys.readouterr().out)
    code = f"source {tmp_path}/bridge.fish; complete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, timeout=20, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [text.split("\t")[0] for text in done.stdout.splitlines()] == offered


def test_every_command_is_offered_to_fish(capsys):
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -xa ")[1].split()[0] for line in lines if "__fish_use_subcommand" in line] == list(
        commands_of(make_parser())
    )
