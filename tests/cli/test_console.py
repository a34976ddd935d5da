"""Terminals of any width: no number, name or command is broken or cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from bridge.cli.main import main

DEVICE = "--device-name h100"
LINES = [
    "flops qwen3-30b-a3b",
    "flops llama3-8b parallel.pipeline_model_parallel_size=4 --number-format mxfp8 --device-name b200",
    "compare llama3-8b qwen3-8b",
    f"check tiny --tokens-per-second 13812 --reported 711TFLOP/s {DEVICE}",
    "plan llama3-8b --tokens 15T --devices 1024 --price 2.5 --device-name H100,B200",
    f"plan tiny --global-batch-size 8 --devices 4 {DEVICE}",
    f"inference llama3-8b --prompt 1000 --generate 100 {DEVICE}",
    "ledger notebook --lora-rank 4 --differences",
    "ledger llama3-8b",
    "devices",
    "recipes",
    "report run --why",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder ``run`` with a finished run of two log points."""
    parts = {"throughput/step_time": 0.5, "throughput/time/gemm": 0.4, "throughput/time/bubble": 0.1}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **parts}) + "\n" for step in (10, 20)))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("line", LINES)
def test_nothing_is_broken_in_a_narrow_terminal(line, run, monkeypatch, capsys):
    def words_at(width: int) -> tuple[list[str], set[str]]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(line.split()) == 0
        out = capsys.readouterr().out
        return out.splitlines(), set(out.split())

    _, whole = words_at(400)
    for width in (80, 60):
        lines, words = words_at(width)
        assert words == whole
        rows = [text for text in lines if "  " in text.strip()]
        assert [text for text in rows if cell_len(text.rstrip()) > width] == []
