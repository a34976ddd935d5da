"""Starts torchrun for the tests, on a port of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """For a process that imports this package and the tests' helpers."""
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    # One thread a rank: several on two cores wait for each other.
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    variables.pop("TORCHELASTIC_ERROR_FILE", None)
    return variables


def torchrun(ranks: int, *command: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Run ``command`` (a script, or ``-m`` and a module) on so many ranks and wait for the end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launcher, *command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def two_machines(*command: str, timeout: int = 300) -> tuple[list[int], str]:
    """Run ``command`` on one rank of each of two torchruns, as two machines would; their exit codes, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meeting, f"--node-rank={machine}", *command],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for machine in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    return [process.returncode for process in started], "".join(said)
