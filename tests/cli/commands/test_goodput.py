"""``bridge goodput`` on ledgers of jobs that ended, and of one that was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli.main import main

EVENTS = (
    {"event": "process", "time": 100.0},
    {"event": "training", "time": 104.0, "step": 0, "launcher": "a", "flops": 0, "host": True},
    {"event": "steps", "time": 105.0, "step": 1},
)


def write(folder: Path, *events: dict) -> Path:
    (folder / "job.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_parts_of_a_job_and_what_nobody_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, *EVENTS, {"event": "finishing", "time": 110.0, "step": 6, "flops": 60})
    assert main(["goodput", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["start_up", "4.0", "40.0%"],
        ["first_step", "1.0", "10.0%"],
        ["productive", "5.0", "50.0%"],
        ["total", "10.0"],
    ]
    assert "goodput  0.5" in lines
    assert "goodput/unknown  import, groups, load, data, evaluation, checkpoint" in lines


def test_a_job_that_was_killed_ends_with_its_last_sign_of_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, *EVENTS)
    beats = ({"event": "beat", "time": 105.0 + step, "step": step} for step in (1, 2, 3))
    (folder / "job.beat").write_bytes(bytes(128) + b"".join(f"{json.dumps(beat):<127}\n".encode() for beat in beats))
    assert main(["goodput", str(folder / "job.jsonl"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["goodput/seconds/productive"], said["goodput"], said["goodput/interruptions"]) == (3, 3 / 8, 0)


def test_what_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goodput", str(tmp_path)]) == 2
    assert f"{tmp_path} is no ledger of a job; name a job.jsonl" in capsys.readouterr().err
