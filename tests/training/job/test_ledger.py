"""The life of a real job that is killed three times, against the clock of the test and an independent record."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from counted import totals
from launch import torchrun, two_machines

from bridge.metrics.goodput import FILE, job_of, read_events
from bridge.training.job.ledger import JobLedger, started

STEPS = 14
SMALL = ("model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.seq_length=128",
         f"train.train_iters={STEPS}", "train.global_batch_size=8", "train.micro_batch_size=2", "data.max_documents=500",
         "logger.log_interval=5", "logger.wandb_project=null", "checkpoint.save_interval=4", "train.eval_interval=7",
         "train.eval_iters=1")  # fmt: skip


@pytest.mark.all
@pytest.mark.slow
def test_a_job_whose_machine_vanishes_and_that_is_killed_in_a_checkpoint_and_in_a_step(tmp_path: Path) -> None:
    """The first accident ends the job, which its scheduler starts again; after the others torchrun starts the workers again."""
    folders = (f"logger.dir={tmp_path}/run", f"checkpoint.save={tmp_path}/saved", f"checkpoint.load={tmp_path}/saved")
    training = ("-m", "bridge", "train", "tiny", *SMALL, *folders)

    def with_accidents(*accidents: str) -> str:
        counting = "{_target_: bridge.training.callbacks.ThroughputCallback, convention: megatron}"
        record = f"{{_target_: accidents.Times, file: {tmp_path}/times}}"
        return f"callbacks=[{','.join([counting, *accidents, record])}]"

    begun = time.time()
    codes, said = two_machines(*training, with_accidents("{_target_: accidents.Vanished, steps: [6], rank: 1}"))
    assert (codes[0] != 0, codes[1]) == (True, -signal.SIGKILL), said[-4000:]
    accidents = with_accidents(
        "{_target_: accidents.KilledInSave, steps: [8], rank: 0}", "{_target_: accidents.Killed, steps: [99, 11], rank: 1}"
    )
    result = torchrun(2, "--max-restarts=2", *training, accidents, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]

    job = job_of(read_events(tmp_path / "saved" / FILE))
    times = [(what, float(when)) for what, when in map(str.split, (tmp_path / "times").read_text().splitlines())]
    wall = times[-1][1] - begun
    assert job.wall == pytest.approx(wall, rel=0.005, abs=0.15)
    assert sum(job.seconds.values()) == pytest.approx(wall, rel=0.005, abs=0.15)
    assert (job.interruptions, job.steps, len(job.recoveries)) == (3, STEPS, 3)

    # Steps as the record has them, without those after an evaluation or a checkpoint and the first of each process.
    in_steps = sum(
        after - before
        for (what, before), (name, after) in pairwise(times)
        if what.startswith("step") and name.startswith("step") and int(what[4:]) % 4 and int(what[4:]) % 7
    )
    counted = job.seconds["productive"] + job.seconds["data"] + job.seconds["lost"]
    assert in_steps <= counted + 0.05

    # Gone after 6 and resumed at 4, killed saving 8 and resumed at 4, killed after 11 and resumed at 8.
    lost = [(4, 6), (4, 8), (8, 11)]
    assert job.lost_steps == sum(end - start for start, end in lost)
    flops = {step: totals(SMALL, step)["throughput/total_flops"] for step in {*sum(lost, ()), STEPS}}
    assert job.lost_flops == sum(flops[end] - flops[start] for start, end in lost)
    assert job.flops == flops[STEPS]
    said = json.loads((tmp_path / "run" / "metrics.summary.json").read_text())
    assert said["goodput/interruptions"] == 3
    assert said["goodput/flops"] == pytest.approx(job.flops_kept)
    assert (
        f"{said['goodput']:.1%} of the job's time, {said['goodput/flops']:.1%} of its FLOPs kept, 3 interruptions"
        in result.stdout
    )


def test_a_torn_line_is_left_out_and_the_last_sign_of_life_is_taken_over(tmp_path: Path) -> None:
    first = JobLedger(tmp_path, lambda: 1.5)
    first.remember("imported")
    first.open()
    first.begin(0)
    for step in (1, 2, 3):
        first.beat(step)
    first.close()
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"event": "st')
    second = JobLedger(tmp_path)
    second.open()
    events = read_events(tmp_path / FILE)
    assert [event["event"] for event in events] == ["process", "imported", "training", "steps", "beat", "process"]
    assert (events[4]["step"], events[4]["data"]) == (3, 1.5)
    assert second.job() is not None
    second.close()


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ledger = JobLedger(tmp_path / "file")
    ledger.open()
    ledger.begin(0)
    ledger.beat(1)
    ledger.close()
    assert ledger.job() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{FILE} cannot be written (File exists): the job's goodput is unknown from here on"
    ]


def test_when_a_process_began() -> None:
    before = time.time()
    child = os.fork()
    if not child:
        time.sleep(1)
        os._exit(0)
    assert started(child) == pytest.approx(before, abs=0.2)
    os.waitpid(child, 0)
    assert started(child) is None
