"""Two torchrun agents in two network namespaces joined by a cable, with the commands of docs/multi-node.md.

Each namespace has its own host name, network and address, so to torchrun and gloo it is a node of its own.  Both agents on
one host: tests/docs/test_clusters.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from counted import totals
from launch import HERE, ROOT, kill_all

from bridge.config import load_recipe
from bridge.flops import compile_plan

pytestmark = pytest.mark.slow

STEPS = 8
SAVED = 4
CUT = 6
"""Steps of the job, of its last checkpoint before the accident, and the step in which the cable is cut."""
OPTIONS = (
    f"train.train_iters={STEPS}",
    "train.global_batch_size=8",
    "model.seq_length=64",
    "data.max_documents=60",
    "logger.log_interval=1",
    "logger.wandb_project=null",
    f"checkpoint.save_interval={SAVED}",
    "train.distributed_timeout_minutes=0.25",
)
THROUGHPUT = "{_target_: bridge.training.callbacks.ThroughputCallback, convention: megatron}"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT_S = 120


def training(folder: Path, *more: str) -> list[str]:
    """The tiny recipe, a few steps of it, as the end of a command line."""
    folders = [f"logger.dir={folder}", f"checkpoint.save={folder}/saved", f"checkpoint.load={folder}/saved"]
    return ["-m", "bridge", "train", "tiny", *OPTIONS, *folders, *more]


def agent(endpoint: str, *more: str) -> list[str]:
    """torchrun on one of two nodes."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "try", "--rdzv-endpoint", endpoint]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting, *more]


def run(folder: Path, commands: Sequence[Sequence[str]], variables: Sequence[dict[str, str]]) -> tuple[list[int], list[str]]:
    """Start the commands together and wait for all of them; their exit codes and what they said."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    started = []
    with contextlib.ExitStack() as files:
        try:
            for log, command, more in zip(logs, commands, variables, strict=True):
                path = os.pathsep.join([str(ROOT), str(HERE)])
                environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
                file = files.enter_context(open(log, "w"))
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
                )
            codes = [process.wait(TIMEOUT_S) for process in started]
        finally:
            for process in started:
                end(process)
    return codes, [log.read_text() for log in logs]


def end(process: subprocess.Popen[bytes]) -> None:
    """An agent that is told to end takes its workers along; they are sessions of their own."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        kill_all(process)


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

    def give_up_soon(self, number: int) -> None:
        """TCP of this node takes a silent connection for dead after half a minute, not after a quarter of an hour.

        Later than the ranks find out (train.distributed_timeout_minutes above): torchrun's agent, once it misses its store, ends
        its ranks before they can say anything.
        """
        setting = "echo 6 > /proc/sys/net/ipv4/tcp_retries2"
        subprocess.run(["ip", "netns", "exec", self.names[number], "sh", "-c", setting], check=True, capture_output=True)

    def mend(self) -> None:
        """Both ends of the cable work again."""
        for name, link in zip(self.names, self.links, strict=True):
            ip("-n", name, "link", "set", link, "up")

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


@pytest.mark.all
def test_a_node_is_cut_off_and_the_job_goes_on_later(nodes: Nodes, tmp_path: Path) -> None:
    """Data parallel until the cable is cut, then in a pipeline: the totals are those of a run without a break."""
    model = load_recipe("tiny").model
    assert model.hidden_size is not None
    gradients = compile_plan(model).parameters()["total"]

    nodes.give_up_soon(1)
    accident = f"{{_target_: accidents.CutOff, link: {nodes.links[1]}, steps: [{CUT}]}}"
    codes, logs, sent = start(nodes, tmp_path, f"callbacks=[{THROUGHPUT}, {accident}]")
    assert codes == [1, 1], "\n".join(logs)
    for rank, log in enumerate(logs):
        said = [line for line in log.splitlines() if line.startswith("bridge: ")]
        assert len(said) == 1, log
        assert said[0].startswith("bridge: error: " if rank == 0 else "bridge: rank 1: error: ")
    assert any("did not answer within train.distributed_timeout_minutes" in log for log in logs)
    assert (tmp_path / "saved" / "latest").read_text().strip() == f"step_{SAVED:07d}"
    assert min(sent) > 4 * CUT * gradients  # float32 gradients of all weights went over the cable

    nodes.mend()
    codes, logs, sent = start(nodes, tmp_path, "parallel.pipeline_model_parallel_size=2")
    assert codes == [0, 0], "\n".join(logs)
    assert f"resumed from {tmp_path}/saved/step_{SAVED:07d}" in logs[0]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    before, expected = totals(OPTIONS, SAVED), totals(OPTIONS, STEPS)
    assert {key: rows[-1][key] for key in expected} == expected
    tokens = expected["throughput/total_tokens"] - before["throughput/total_tokens"]
    assert min(sent) > 4 * tokens * model.hidden_size  # and activations, or their gradients, of all tokens


def start(nodes: Nodes, folder: Path, *more: str) -> tuple[list[int], list[str], list[int]]:
    """The training on both nodes: exit codes, what was said, and the bytes that each put on the cable."""
    before = [nodes.sent(number) for number in range(2)]
    commands = [
        nodes.within(number, [*agent(f"{ADDRESSES[0]}:29500", "--local-addr", address), *training(folder, *more)])
        for number, address in enumerate(ADDRESSES)
    ]
    codes, logs = run(folder, commands, [{"GLOO_SOCKET_IFNAME": link} for link in nodes.links])
    return codes, logs, [nodes.sent(number) - before[number] for number in range(2)]
