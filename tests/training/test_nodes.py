"""Two torchrun agents: on one host, and in two network namespaces joined by a cable. The commands are those of the docs.

Each namespace has its own host name, network and address, so to torchrun and gloo it is a node of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT

from bridge.config import load_recipe
from bridge.flops import compile_plan

pytestmark = pytest.mark.slow

STEPS = 2
OPTIONS = (
    f"train.train_iters={STEPS}",
    "train.global_batch_size=8",
    "model.seq_length=64",
    "data.max_documents=60",
    "logger.log_interval=1",
    "logger.wandb_project=null",
)
LAYOUTS = {"DP2": [], "PP2": ["parallel.pipeline_model_parallel_size=2"]}
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT_S = 240

Prefixes = Sequence[Sequence[str]]


def training(folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The tiny recipe, a few steps of it, as the end of a command line."""
    return ["-m", "bridge", "train", "tiny", *OPTIONS, f"logger.dir={folder}", *overrides]


def agent(endpoint: str, *more: str) -> list[str]:
    """torchrun on one of two nodes."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "try", "--rdzv-endpoint", endpoint]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting, *more]


def run(folder: Path, commands: Sequence[Sequence[str]], variables: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Start the commands together, wait for all of them; the last row that the training wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    with contextlib.ExitStack() as files:
        try:
            for number, (command, more) in enumerate(zip(commands, variables, strict=True)):
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
                log = files.enter_context(open(folder / f"{number}.log", "w"))
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            codes = [process.wait(TIMEOUT_S) for process in started]
        finally:
            for process in started:
                end(process)
    logs = "\n".join((folder / f"{number}.log").read_text()[-3000:] for number in range(len(commands)))
    assert codes == [0] * len(commands), logs
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS, logs
    return rows[-1]


def end(process: subprocess.Popen[bytes]) -> None:
    """An agent that is told to end takes its workers along; they are sessions of their own."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def totals(row: dict[str, Any]) -> dict[str, int]:
    """The cumulative integers of a row."""
    return {key: row[f"throughput/{key}"] for key in ("total_flops", "total_tokens")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Totals of the same steps in a single process."""
    folder = tmp_path_factory.mktemp("alone")
    return totals(run(folder, [[sys.executable, *training(folder)]], [{}]))


# ---- one host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_agents_on_one_host_count_as_one_process(alone: dict[str, int], tmp_path: Path, layout: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*agent(endpoint), *training(tmp_path, LAYOUTS[layout])]
    assert totals(run(tmp_path, [command, command], [{}, {}])) == alone


# ---- two network namespaces -----------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Nodes:
    """Two network namespaces and a veth pair between them."""

    def __init__(self, folder: Path) -> None:
        tag = uuid.uuid4().hex[:6]
        self.names = [f"bridge-{tag}-{number}" for number in range(2)]
        self.links = [f"veth{tag}{number}" for number in range(2)]  # at most 15 characters
        self.hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} node{number}" for number, address in enumerate(ADDRESSES))]
        self.hosts.write_text("\n".join(lines) + "\n")

    def join(self) -> None:
        """Make and connect them."""
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer", self.links[1], "netns", self.names[1])
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        """The pair of links goes with its namespaces."""
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def within(self, number: int, command: Sequence[str]) -> list[str]:
        """The command in a namespace, under a host name of its own that both nodes can resolve."""
        script = f'hostname node{number} && mount --bind "$0" /etc/hosts && exec "$@"'
        shell = ["unshare", "--uts", "--mount", "sh", "-c", script, str(self.hosts)]
        return ["ip", "netns", "exec", self.names[number], *shell, *command]

    def sent(self, number: int) -> int:
        """Bytes that a node put on the link so far."""
        counter = f"/sys/class/net/{self.links[number]}/statistics/tx_bytes"
        command = ["ip", "netns", "exec", self.names[number], "cat", counter]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    missing = [tool for tool in ("ip", "unshare", "hostname", "mount") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing:
        pytest.skip(f"network namespaces need Linux and {', '.join(missing) or 'its tools'}")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    pair = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        try:
            pair.join()
            subprocess.run(pair.within(0, ["true"]), check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield pair
    finally:
        pair.remove()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_nodes_count_as_one_process(alone: dict[str, int], nodes: Nodes, tmp_path: Path, layout: str) -> None:
    before = [nodes.sent(number) for number in range(2)]
    training_here = training(tmp_path, LAYOUTS[layout])
    commands = [
        nodes.within(number, [*agent(f"{ADDRESSES[0]}:29500", "--local-addr", address), *training_here])
        for number, address in enumerate(ADDRESSES)
    ]
    row = run(tmp_path, commands, [{"GLOO_SOCKET_IFNAME": link} for link in nodes.links])
    assert totals(row) == alone
    # The step's tensors went over the link: gradients of all weights, or activations of all tokens (float32).
    model = load_recipe("tiny").model
    assert model.hidden_size is not None
    gradients = compile_plan(model).parameters()["total"] * STEPS
    crossed = {"DP2": gradients, "PP2": alone["total_tokens"] * model.hidden_size}[layout]
    for number in range(2):
        assert nodes.sent(number) - before[number] > 4 * crossed
