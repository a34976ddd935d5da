"""Arguments drawn from each command's own parser: every line ends with 0, 1 or 2, an error is one sentence, none takes long."""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.cli import COMMANDS
from bridge.cli.main import main
from bridge.cli.parser import commands_of, make_parser
from bridge.metrics.trackers.jsonl import summary_path

#: Seconds of processor time that one line may take; lines of a command in the default run, and of each further draw.
PATIENCE, LINES, MORE_LINES = 20, 5, 40

NONSENSE = [
    "", " ", "-", "=", ",", "-1", "0", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 40, "9" * 5000, "0x10",
    "1_000", "1,,2", "1-", "5-1", "1/0", "½", "١٢", "é漢字", "\u202e", "\ud800", "a\nb", "a" * 5000, "None", "true", "{",
    "[1", "%s", "{0}", "*", "~", "/", ".", "..", "/dev/null", "nowhere/x.json", "folder", "empty.json", "broken.json",
    "list.yaml", "binary.bin", "deep.json", "unknown.json", "tiny.yaml/x",
]  # fmt: skip
SENSE = [
    "1", "2", "8", "4096", "16,512", "1k", "0.4", "1e9", "exact", "H100", "H200", "bf16", "3.5TB/s", "800TFLOP/s", "2B",
    "30USD", "64x64",
]  # fmt: skip
RECIPES = [
    "tiny", "llama3-8b", "qwen2.5-vl-7b", "deepseek-v3-mtp", "nemotron-h-8b", "config.json", "whisper.json", "mine.yaml",
    "run",
]  # fmt: skip
OVERRIDES = [
    "a=b=c", "=", "model.=1", ".=1", "x", "--", "-x", "model=3", "model.nothing=1", "peft=", "callbacks=[3]",
    "base=mine.yaml", "data.path=folder", "model.num_layers=", "model.num_layers=2", "model.num_layers=-1",
    "model.num_layers=nan", "model.num_layers=99999999999", "model.num_layers=[1]", "model.num_layers=é",
    "model.hidden_size=1e300", "model.hidden_size=true", "model.hidden_size=0", "model.hidden_size=63",
    "model.vocab_size=0", "model.num_moe_experts=8", "model.moe_layer_freq=[1,x]", "model.hybrid_layer_pattern=M*?",
    "model.window_size=[1]", "model.vision_config.depth=2", "model.fp8=${oc.env:NOWHERE}", "model.num_attention_heads=7",
    "peft.dim=8", "peft.dim=-8", "peft.target_modules=[x]", "hardware.peak_flops=inf", "hardware.peak_flops=-1",
    "hardware.device_name=[]", "parallel.tensor_model_parallel_size=3", "parallel.pipeline_model_parallel_size=7",
    "train.train_iters=1e9", "train.global_batch_size=0", "logger.trackers=[{_target_: os.nothing}]",
]  # fmt: skip
#: They measure this machine, whatever they are told.
MEASURED = {"peak", "profile"}
#: Options that few lines are without.
USUAL = {"prompt", "generate", "tokens", "devices", "device_name", "mfu", "tokens_per_second"}


def accepted(action: argparse.Action, text: str) -> bool:
    try:
        return action.type is None or callable(action.type) and action.type(text) is not None
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False


def value(draw: random.Random, action: argparse.Action, doubt: float) -> str:
    """What the option may be given, or with this probability anything."""
    if draw.random() < doubt:
        return draw.choice(NONSENSE)
    if action.choices:
        return str(draw.choice(list(map(str, action.choices))))
    if action.dest in ("recipe", "draft", "trace", "file", "ledger"):
        return draw.choice(RECIPES)
    if action.dest in ("sources", "source", "beside"):
        return "run"
    if action.dest == "device_name":
        return draw.choice(["H100", "H200"])
    return draw.choice([text for text in SENSE if accepted(action, text)] or NONSENSE)


def line(draw: random.Random, command: str) -> list[str]:
    parser = commands_of(make_parser([command]))[command]
    words, doubt = [command], draw.choice([0, 0.1, 0.1, 0.5])
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.option_strings:
            if draw.random() < (0.9 if action.required or action.dest in USUAL else 0.2):
                words.append(draw.choice(action.option_strings))
                words += [value(draw, action, doubt)] if action.nargs is None else []
        elif action.dest == "overrides":
            words += draw.sample(RECIPES, draw.randrange(1, 3)) if action.nargs == "+" else []
            words += draw.sample(OVERRIDES, draw.choice([0, 1, 2]) if draw.random() < 4 * doubt else 0)
        elif draw.random() > doubt / 5:
            words.append(value(draw, action, doubt))
    if command == "dashboard" and not {"--dry-run", "--json"} & set(words):
        words.append("--dry-run")  # else it asks the network, where somebody has an account
    return words


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that lines are typed in: it has files that are what their names say, and files that are not."""
    (tmp_path / "folder").mkdir()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}
    files: dict[str, Any] = {
        "config.json": {"model_type": "llama", **sizes},
        "unknown.json": {"model_type": "nobody", "hidden_size": []},
        "whisper.json": {"model_type": "whisper"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "empty.json").touch()
    (tmp_path / "broken.json").write_text('{"model_type": ')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "mine.yaml").write_text("base: tiny\nmodel: {num_layers: 3}\n")
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 4)
    rows = tmp_path / "run" / "metrics.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"step": 1, "throughput/mfu": 0.4}\n{"step": 2, "throughput/mfu": NaN}\n[1]\n{"st')
    summary_path(rows).write_text('{"device": 3}')
    events = (
        '{"event": "process", "time": 5}',
        '{"event": "steps", "time": 9, "step": []}',
        '{"event": "end", "time": NaN}',
        "[1]",
    )
    (tmp_path / "run" / "job.jsonl").write_text("\n".join(events) + "\n{")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains or serves; what they are told is read all the same."""
    monkeypatch.setitem(sys.modules, "bridge.training.loop", SimpleNamespace(train=lambda *_, **__: 0))
    monkeypatch.setitem(sys.modules, "bridge.explorer.page", SimpleNamespace(serve=lambda *_, **__: None))


class TooLong(BaseException):
    """More than the patience of the test."""


def ends(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how a line of arguments ends; empty: nothing."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        code = main(words)
    except (Exception, SystemExit, TooLong) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        out, err = capsys.readouterr()
    for name in words:  # a file that is written is called as it was typed
        out = out.replace(f"{name}  (", "(")
    if code and not err.startswith("bridge: error: "):
        return f"code {code}, and it says {err[-300:]!r}"
    if code not in (0, 1, 2) or "Traceback" in err:
        return f"code {code}: {err[-300:]}"
    if len(err) > 2100:
        return f"an error of {len(err)} characters: {err[:200]}"
    if found := re.search(r"(?<![\w.=])(-?nan|-?inf|NaN|-?Infinity)\b|(?<![\w.])-\d[\d,.]* \w*FLOP|object at 0x", out):
        return f"prints {out[max(0, found.start() - 80) : found.end() + 20]!r}"
    return ""


FURTHER = [pytest.param(seed, marks=pytest.mark.all) for seed in range(1, 6)]


@pytest.mark.parametrize("seed", [0, *FURTHER])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in MEASURED])
def test_whatever_is_typed(command: str, seed: int, place: Path, light: None, capsys: pytest.CaptureFixture[str]) -> None:
    draw, wrong = random.Random(f"{command} {seed}"), {}
    for _ in range(MORE_LINES if seed else LINES):
        words = line(draw, command)
        if said := ends(words, capsys):
            wrong[shlex.join(words)] = said
    assert wrong == {}
