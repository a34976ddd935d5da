"""The life of a job in loops that are not ours: what they fire adds up to the clock, and what they do not tell is named."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import host_loop
import pytest
from host_loop import KILLED, LENGTHS, MODEL, SAVED, SECONDS, STEPS
from launch import torchrun

from bridge.flops import compile_plan
from bridge.metrics.goodput import FILE, job_of, read_events
from bridge.metrics.place import Place
from bridge.training.job.host_ledger import HostLedger


@pytest.mark.slow
def test_a_loop_of_two_ranks_that_is_killed_in_a_step(tmp_path: Path) -> None:
    begun = time.time()
    result = torchrun(2, "--max-restarts=1", host_loop.__file__, str(tmp_path), timeout=200)
    assert result.returncode == 0, result.stderr[-4000:]
    wall = float((tmp_path / "ended").read_text()) - begun

    job = job_of(read_events(tmp_path / "life" / FILE))
    assert job.wall == pytest.approx(wall, rel=0.005, abs=0.1)
    assert sum(job.seconds.values()) == pytest.approx(wall, rel=0.005, abs=0.1)
    assert (job.interruptions, job.steps, len(job.recoveries)) == (1, STEPS, 1)
    # Sleeps of the steps that were kept, but for the first one of each process; what comes after a checkpoint belongs to it until
    # the next step. Data that is waited for between steps is known, what else happens there is not.
    reached = KILLED - 1
    least = {
        "productive": (STEPS - 2) * SECONDS["step"],
        "data": (STEPS - 2) * SECONDS["data"],
        "unknown": (STEPS - 1) * SECONDS["between"],
        "lost": (reached - SAVED) * SECONDS["step"] + (reached - SAVED - 1) * (SECONDS["data"] + SECONDS["between"]),
        "evaluation": SECONDS["evaluation"],
        "checkpoint": SECONDS["checkpoint"] + SECONDS["between"] + SECONDS["data"],
    }
    assert {part: job.seconds[part] >= seconds for part, seconds in least.items()} == dict.fromkeys(least, True)
    assert job.seconds["unknown"] < STEPS * (SECONDS["between"] + SECONDS["data"]) + 0.2
    assert job.unknown == ("import", "groups", "load")
    flops = [2 * compile_plan(MODEL, "exact").flops([length]) for length in LENGTHS]
    assert (job.flops, job.lost_flops) == (sum(flops), sum(flops[SAVED:reached]))
    assert job.lost_steps == reached - SAVED
    said = json.loads((tmp_path / "metrics.summary.json").read_text())
    assert said["goodput/unknown"] == ["import", "groups", "load"]
    assert said["goodput/flops"] == pytest.approx(job.flops_kept)


ALONE = Place()


def events_of(folder: Path) -> list[str]:
    return [event["event"] for event in read_events(folder / FILE)]


def train(folder: Path, first: int, last: int, *, ends: bool = True) -> HostLedger:
    """Steps without more events than a loop must fire."""
    ledger = HostLedger(str(folder))
    ledger.begin(ALONE, first, None)
    for step in range(first, last):
        ledger.enter_step(step)
        time.sleep(0.01)
        ledger.leave_step(step + 1)
        time.sleep(0.02)
    if ends:
        ledger.end(last, None)
        ledger.close(last)
    return ledger


def test_a_loop_without_checkpoints_that_are_told_knows_when_it_reached_the_step_it_goes_back_to(tmp_path: Path) -> None:
    """Of a process that was killed each of the last steps is known, not only the last one."""
    child = os.fork()
    if not child:
        train(tmp_path, 0, 10, ends=False)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    train(tmp_path, 4, 6)
    job = job_of(read_events(tmp_path / FILE))
    assert (job.steps, job.lost_steps, job.interruptions) == (6, 6, 1)
    # Steps 5 to 10 and what was between them; of the kept ones 2 to 4, and 6 of the second training.
    assert 6 * 0.01 + 5 * 0.02 <= job.seconds["lost"] < 6 * 0.03 + 0.06
    assert 4 * 0.01 <= job.seconds["productive"] < 4 * 0.02
    assert job.unknown == ("import", "groups", "load", "data", "evaluation", "checkpoint", "flops")
    assert (job.flops, job.lost_flops) == (None, None)
    assert "goodput/flops" not in job.metrics()
    assert "goodput/seconds/checkpoint" not in job.metrics()


def test_a_second_training_of_a_process_is_another_job(tmp_path: Path) -> None:
    train(tmp_path, 0, 3)
    begun = time.time()
    train(tmp_path, 0, 2)
    job = job_of(read_events(tmp_path / FILE))
    assert (job.processes, job.steps, job.lost_steps) == (1, 2, 0)
    assert job.wall == pytest.approx(time.time() - begun, abs=0.02)


def test_an_evaluation_before_the_first_step_and_one_whose_end_nobody_tells(tmp_path: Path) -> None:
    ledger = HostLedger(str(tmp_path))
    ledger.begin(ALONE, 0, 0)
    ledger.aside("evaluation", 0)
    ledger.back(0)
    ledger.enter_step(0)
    ledger.leave_step(1)
    ledger.aside("evaluation", 1)
    ledger.aside("evaluation", 1)
    ledger.aside("checkpoint", 1, flops=7)
    ledger.enter_step(1)
    ledger.leave_step(2)
    ledger.end(2, 14)
    ledger.close(2)
    expected = ["evaluation", "warming", "steps", "evaluation", "checkpoint", "steps", "finishing", "end"]
    assert events_of(tmp_path) == ["process", "training", *expected]


def test_of_two_at_once_the_later_one_writes(tmp_path: Path) -> None:
    one, other = train(tmp_path, 0, 2, ends=False), HostLedger(str(tmp_path))
    other.begin(ALONE, 0, 0)
    one.leave_step(3)
    one.close(3)
    other.leave_step(1)
    other.close(1)
    events = [(event["event"], event.get("step")) for event in read_events(tmp_path / FILE)]
    begins = [("process", None), ("training", 0), ("steps", 1)]
    assert events == [*begins, ("beat", 2), *begins, ("end", 1)]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = HostLedger()
    ledger.begin(ALONE, 0, 0)
    ledger.enter_step(0)
    ledger.leave_step(1)
    assert ledger.end(1, 1) is None
    assert not list(tmp_path.iterdir())
