"""Starts ranks for the tests: by torchrun, and by a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """For a process that imports this package and the tests' helpers."""
    path = os.pathsep.join([str(ROOT), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
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


def kill_all(job: subprocess.Popen[Any]) -> None:
    """A torchrun and its ranks, which are sessions of their own, at once and without a word to any of them."""
    job.send_signal(signal.SIGSTOP)  # or it would start them again
    subprocess.run(["pkill", "-KILL", "-P", str(job.pid)], check=False)
    job.kill()
    job.wait()


def launch(ranks: int, *command: str, cwd: Path = ROOT, timeout: int = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same as :func:`torchrun` without its start: the ranks are forked from a process that has imported megatron-core.

    Importing takes six seconds of each rank.  What is about torchrun itself, or about a whole program, needs the real one.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {
        **environment(),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": str(store.port),
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }
    with tempfile.TemporaryDirectory() as folder:
        places = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        processes = [server().Process(target=be_rank, args=(place, cwd, folder, command)) for place in places]
        for process in processes:
            process.start()
        code = wait_for_all(processes, time.monotonic() + timeout)
        said = [Path(folder, name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(command, code, *said)


@cache
def server() -> ForkServerContext:
    """Started once; it finds what it is to import by its environment alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with patch.dict(os.environ, environment()):
        forkserver.ensure_running()
    return context


def wait_for_all(processes: list[multiprocessing.process.BaseProcess], until: float) -> int:
    """The code of the first one that fails, which ends the others, as the end of the time does."""
    code = 0
    while running := [process.sentinel for process in processes if process.is_alive()]:
        wait(running, max(0, until - time.monotonic()))
        code = code or failed(processes)
        if code or time.monotonic() > until:
            for process in processes:
                process.kill()
    return code or failed(processes)


def failed(processes: list[multiprocessing.process.BaseProcess]) -> int:
    return next((process.exitcode for process in processes if process.exitcode), 0)


def be_rank(variables: dict[str, str], cwd: Path, folder: str, command: tuple[str, ...]) -> None:
    """In the forked process: what ``python command`` would do in this environment, its words into ``folder``."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for stream in (sys.stdout, sys.stderr):  # both ranks write to one file: a line at once
        stream.reconfigure(line_buffering=True, write_through=False)
    multiprocessing.set_start_method(None, force=True)  # a data loader's workers start as they do under torchrun
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    program, *arguments = command[1:] if command[0] == "-m" else command
    sys.path[:0] = [str(Path(program).parent), *variables["PYTHONPATH"].split(os.pathsep)]
    sys.argv = [program, *arguments]
    if command[0] == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
