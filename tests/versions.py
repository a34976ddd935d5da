"""Installs the package into separate environments, from the oldest to the newest versions that resolve, and counts in each.

``make test-versions [ARGS='name ...']``; each environment lies in build/versions and is kept.  uv makes them and finds the
interpreters, and resolves what pip cannot: pip runs the build of every source package it looks at, Megatron-Bridge's need CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "versions"
#: Llama 3 8B, one sequence of 8,192 tokens.
LLAMA = "421645529382912"

_COUNT = ["-m", "bridge", "flops", "llama3-8b", "--json"]
_LOOP = ["-m", "tests.versions_loop"]
_TRAIN = ["-m", "bridge", "train", "tiny", "train.train_iters=3", "logger.wandb_mode=disabled", "logger.dir=."]


@dataclass(frozen=True)
class Environment:
    """What is installed beside what, and what runs there.

    Attributes:
        extra: of ours; empty: none.
        pins: versions to hold; the rest is what resolves, the newest first.
        run: arguments of Python; empty: it is only resolved.
        said: what the output must hold.
    """

    name: str
    python: str
    extra: str
    pins: tuple[str, ...]
    run: tuple[str, ...]
    said: str


_OLD = ("omegaconf==2.3.0", "torch==2.6.0", "numpy==1.26.4", "wandb==0.19.0")
ENVIRONMENTS = (
    Environment("count-oldest", "3.10", "", ("omegaconf==2.3.0",), tuple(_COUNT), LLAMA),
    Environment("count-newest", "3.13", "", (), tuple(_COUNT), LLAMA),
    Environment("callback-oldest", "3.10", "callback", (*_OLD, "megatron-core==0.12.0"), tuple(_LOOP), "equal"),
    Environment("callback-newest", "3.13", "callback", ("torch",), tuple(_LOOP), "equal"),
    Environment("train-oldest", "3.10", "train", (*_OLD, "megatron-core==0.16.0"), tuple(_TRAIN), "== done =="),
    Environment("train-newest", "3.13", "train", (), tuple(_TRAIN), "== done =="),
    Environment("train-too-old", "3.10", "callback", (*_OLD, "megatron-core==0.12.0"), tuple(_TRAIN), "0.16 or newer, 0.12.0"),
    Environment("beside-megatron-bridge", "3.12", "callback", ("megatron-bridge==0.3.1", "hydra-core"), (), "omegaconf==2.3"),
)
#: Whose versions the table shows.
_SHOWN = ("omegaconf", "torch", "megatron-core", "numpy", "wandb")


def interpreter(version: str) -> str:
    """A Python of this version: pyenv's, or one on the path.

    Raises:
        RuntimeError: there is none.
    """
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")
    if found is None:
        raise RuntimeError(f"there is no python{version}")
    return found


def uv(*arguments: str) -> str:
    tool = HOME / "uv" / "bin"
    if not (tool / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME / "uv")], check=True)
        subprocess.run([str(tool / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    done = subprocess.run([str(tool / "uv"), *arguments], capture_output=True, text=True, check=False, cwd=HOME)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"uv ended with {done.returncode}")
    return done.stdout


def check(environment: Environment) -> tuple[str, str]:
    """(versions, result) in words."""
    ours = f"bridge-flops{f'[{environment.extra}]' if environment.extra else ''} @ {ROOT.as_uri()}"
    HOME.mkdir(parents=True, exist_ok=True)
    wanted = HOME / f"{environment.name}.in"
    wanted.write_text("\n".join((ours, *environment.pins)) + "\n")
    resolved = uv("pip", "compile", "--quiet", "--python", interpreter(environment.python), str(wanted))
    versions = _versions(resolved)
    if not environment.run:
        return versions, "resolves" if environment.said in resolved else f"{environment.said} was not chosen"
    python = HOME / environment.name / "bin" / "python"
    if not python.exists():
        uv("venv", "--quiet", "--python", interpreter(environment.python), str(HOME / environment.name))
    uv("pip", "install", "--quiet", "--python", str(python), *(line for line in wanted.read_text().split("\n")[1:] if line), ours)
    # What was installed runs, and not the repository: a folder of its own, the tests' loop beside it on the path.
    folder = HOME / f"{environment.name}.run"
    folder.mkdir(exist_ok=True)
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests" / "versions_loop.py").write_text((ROOT / "tests" / "versions_loop.py").read_text())
    command = [str(python), *environment.run]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    return versions, "runs" if environment.said in output else f"FAILED: {output.strip().splitlines()[-1:]}"


def _versions(resolved: str) -> str:
    found = dict(line.split("==") for line in resolved.splitlines() if "==" in line and not line.startswith((" ", "#")))
    return ", ".join(f"{name} {found[name]}" for name in _SHOWN if name in found)


def main(names: list[str]) -> int:
    print("| environment | Python | versions | result |\n| --- | --- | --- | --- |")
    failed = 0
    for environment in ENVIRONMENTS:
        if names and environment.name not in names:
            continue
        try:
            versions, result = check(environment)
        except RuntimeError as error:
            versions, result = "", f"FAILED: {error}"
        failed += result not in ("runs", "resolves")
        print(f"| {environment.name} | {environment.python} | {versions} | {result} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
