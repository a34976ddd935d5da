"""Two jobs in one folder: real processes, one that lives, one that was killed while its children live on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.training.errors import RunError
from bridge.training.job.lock import JobLock

HOLD = """
import os, sys, time
from bridge.training.job.lock import JobLock
lock = JobLock()
lock.take([sys.argv[1]])
if os.fork() == 0:  # as the workers of a data loader, which hold what their parent holds
    time.sleep(60)
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout.readline().strip() == str(process.pid)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_the_second_job_is_told_who_is_there_and_a_dead_ones_folder_is_taken_over(tmp_path, holder):
    says = f"another job is running there (host {socket.gethostname()}, process {holder.pid})"
    with JobLock() as lock, pytest.raises(RunError, match=re.escape(says)):
        lock.take([tmp_path / "other", tmp_path])
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with JobLock() as lock:
        lock.take([tmp_path])


def test_a_folder_is_free_again_after_the_job_and_one_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        with JobLock() as lock:
            lock.take([tmp_path / "run", str(tmp_path / "run"), tmp_path / "file" / "run"])
