"""The files of docs/clusters: each one's own command starts two nodes, here two torchruns on one host.

What stands for the scheduler are its environment variables and small programs in front of the PATH.  Where Slurm is installed,
a real one of two nodes runs, requeues and ends the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from counted import totals
from launch import ROOT

from bridge.config import load_recipe

CLUSTERS = ROOT / "docs" / "clusters"
FILES = sorted(path.name for path in CLUSTERS.iterdir())
SHELL = [name for name in FILES if name.endswith((".sh", ".sbatch"))]

# Takes the place of the package, and says who it is instead of training.
STAND_IN = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID", "WANDB_RUN_ID", "OMP_NUM_THREADS")
report = {name: os.environ.get(name) for name in names} | {"arguments": sys.argv[1:]}
with open(os.path.join(os.environ["REPORTS"], os.environ["RANK"]), "w") as file:
    json.dump(report, file)
"""

SMALL = ("train.train_iters=200", "train.global_batch_size=8", "model.seq_length=64", "data.max_documents=60",
         "logger.log_interval=1", "checkpoint.save_interval=50")  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def edited(name: str, folder: Path, **values: str) -> str:
    """A shell file with other values in its second place, and the given ``name=`` lines."""
    text = (CLUSTERS / name).read_text()
    for variable, value in {"folder": str(folder), **values}.items():
        text, found = re.subn(rf"^{variable}=.*$", f"{variable}={value}", text, flags=re.MULTILINE)
        assert found == 1, variable
    return text


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)


def environment(folder: Path, package: Path, **more: str) -> dict[str, str]:
    """The programs of a folder stand in front of all others; torchrun is that of this Python."""
    program(folder, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"\n')
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PET_", "TORCHELASTIC_", "WANDB_"))}
    return {**keep, "PATH": path, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **more}


# ---- as text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_two_places_are_edited(name: str) -> None:
    assert sorted(re.findall(r"# EDIT (\d)", (CLUSTERS / name).read_text())) == ["1", "2"]


@pytest.mark.parametrize("name", SHELL)
def test_shell_syntax(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTERS / name], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", CLUSTERS / name], check=True)


def test_kubernetes_objects_are_those_of_the_official_models() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    kinds = {
        "TrainJob": models.TrainerV1alpha1TrainJob,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    }
    documents = kubernetes()
    assert documents.keys() == kinds.keys()
    for kind, document in documents.items():
        assert kinds[kind].from_dict(document).to_dict() == document, kind  # unknown fields would be gone


def test_skypilot_takes_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    monkeypatch.chdir(ROOT)
    task = sky.Task.from_yaml(str(CLUSTERS / "skypilot.yaml"))
    assert (task.num_nodes, task.name) == (2, task.envs["NAME"])


def kubernetes() -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())}


# ---- the commands, with something in the place of the training ------------------------------------------------------


def slurm(folder: Path) -> tuple[list[list[str]], list[dict[str, str]]]:
    """sbatch runs the file once; srun runs its command once a node, scontrol knows the names of the nodes."""
    tools = folder / "tools"
    program(tools, "scontrol", "echo localhost\necho localhost\n")
    program(tools, "srun", 'for i in 0 1; do SLURMD_NODENAME=node$i "$@" & done\nwait\n')
    variables = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }  # fmt: skip
    return [["bash", "-c", edited("slurm.sbatch", folder)]], [variables]


def kubeflow(folder: Path) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Trainer runs the runtime's command with the job's arguments in each pod, and sets torchrun's variables."""
    documents = kubernetes()
    job = documents["TrainJob"]["spec"]["trainer"]
    pod = documents["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = [*pod["containers"][0]["command"], *job["args"]]
    assert job["numNodes"] == 2
    port = str(free_port())
    variables = [
        {"NAME": documents["TrainJob"]["metadata"]["name"], "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1",
         "PET_NODE_RANK": str(node), "PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": port}
        for node in range(2)
    ]  # fmt: skip
    return [command, command], variables


def skypilot(folder: Path) -> tuple[list[list[str]], list[dict[str, str]]]:
    """SkyPilot runs ``run`` on each node."""
    task = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    script = task["run"].replace(":29500", f":{free_port()}")
    variables = [
        {**task["envs"], "SKYPILOT_NODE_RANK": str(node), "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
         "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_GPUS_PER_NODE": "1",
         "SKYPILOT_TASK_ID": "sky-managed-2026-11-21-12-00-00-000000_llama3-8b_7-0"}
        for node in range(2)
    ]  # fmt: skip
    return [["bash", "-c", script]] * 2, variables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "run_id"),
    [(slurm, r"slurm-\d+"), (kubeflow, "llama3-8b"), (skypilot, "sky-managed-2026-11-21-12-00-00-000000_llama3-8b_7-0")],
)
def test_the_command_starts_the_recipe_on_two_nodes(scheduler: Callable, run_id: str, tmp_path: Path) -> None:
    for name in ("tools", "reports", "package/bridge"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "package" / "bridge" / "__main__.py").write_text(STAND_IN)
    commands, variables = scheduler(tmp_path)
    shared = environment(tmp_path / "tools", tmp_path / "package", REPORTS=str(tmp_path / "reports"))
    run(commands, [{**shared, **more} for more in variables], tmp_path)
    reports = [json.loads((tmp_path / "reports" / str(rank)).read_text()) for rank in range(2)]
    for rank, report in enumerate(reports):
        assert (report["RANK"], report["WORLD_SIZE"]) == (str(rank), "2")
        assert report["TORCHELASTIC_MAX_RESTARTS"] == "3"
        assert re.fullmatch(run_id, report["WANDB_RUN_ID"])
    assert reports[0]["arguments"] == reports[1]["arguments"]
    verb, recipe, *overrides = reports[0]["arguments"]
    checkpoint = load_recipe(recipe, overrides).checkpoint
    assert verb == "train"
    assert checkpoint.save == checkpoint.load is not None
    assert checkpoint.save_interval is not None


def run(commands: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]], folder: Path) -> None:
    started = [
        subprocess.Popen(command, cwd=folder, env=more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, more in zip(commands, variables, strict=True)
    ]
    try:
        said = [process.communicate(timeout=60)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)


# ---- trained for real -----------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def small(text: str) -> str:
    """A short training instead of the recipe's own."""
    changed = text.replace("checkpoint.save_interval=100", " ".join(SMALL))
    assert changed != text
    return changed


@pytest.mark.all
@pytest.mark.slow
def test_ssh_trains_on_two_hosts_and_a_signal_saves(tmp_path: Path) -> None:
    """``ssh`` runs the command line of the other host in a shell here."""
    (tmp_path / "tools").mkdir()
    program(tmp_path / "tools", "ssh", '[ "$1" = -n ]\nexec bash -c "${@:3}" < /dev/null\n')
    hosts = "(localhost 127.0.0.1)"
    text = small(edited("ssh.sh", tmp_path / "run", recipe="tiny", devices="1", hosts=hosts))
    variables = environment(tmp_path / "tools", ROOT, PORT=str(free_port()))
    job = subprocess.Popen(["bash", "-c", text], cwd=ROOT, env=variables, start_new_session=True)
    try:
        wait_until(lambda: len(rows(tmp_path / "run")) > 2)
        job.send_signal(signal.SIGTERM)
        assert job.wait(90) == 1  # torchrun's own code after a signal
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)
    last = rows(tmp_path / "run")[-1]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == f"step_{last['step']:07d}"
    assert last["step"] < 200
    expected = totals(SMALL, last["step"])
    assert {key: last[key] for key in expected} == expected
    (wandb,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert wandb.name.endswith("-" + (tmp_path / "run" / "wandb_id").read_text().strip())


CONFIGURATION = """
ClusterName=two
FirstJobId={first}
SlurmctldHost={host}
SlurmctldPort={port0}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus} State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def real_slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """slurmctld and two slurmd on this host, in a mount namespace where the nodes' names lead here."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "unshare") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed")
    if os.geteuid() != 0:
        pytest.skip("slurmctld and slurmd need root")
    folder, host = tmp_path / "slurm", socket.gethostname().partition(".")[0]
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} node0 node1\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    first = random.randrange(1, 60_000)  # the port where torchruns meet follows from the job's number
    ports = {f"port{number}": free_port() for number in range(3)}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, cpus=os.cpu_count(), first=first, **ports))
    variables = {**environment(folder, ROOT), "SLURM_CONF": f"{folder}/slurm.conf"}
    munge = f"munged --force --socket={folder}/munge.socket --key-file={folder}/key --pid-file={folder}/munged.pid"
    munge += f" --log-file={folder}/munged.log --seed-file={folder}/seed"
    start = f"mount --bind {folder}/hosts /etc/hosts && {munge} && slurmctld && slurmd -N node0 && slurmd -N node1"
    try:
        started = subprocess.run(["unshare", "--mount", "sh", "-c", start], env=variables, capture_output=True, text=True)
        if started.returncode:
            pytest.skip(f"Slurm does not start here: {started.stderr.strip()}")
        yield variables
    finally:
        for name in ("slurmd-node0", "slurmd-node1", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


@pytest.mark.slow
def test_slurm_requeues_the_job_and_it_goes_on(real_slurm: dict[str, str], tmp_path: Path) -> None:
    def slurm(*command: str) -> str:
        return subprocess.run(command, cwd=ROOT, env=real_slurm, check=True, capture_output=True, text=True).stdout.strip()

    folder = tmp_path / "run"
    (tmp_path / "job").write_text(small(edited("slurm.sbatch", folder, recipe="tiny")))
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60", f"--output={tmp_path}/log"]
    job = slurm("sbatch", "--parsable", *options, str(tmp_path / "job"))
    wait_until(lambda: len(rows(folder)) > 2)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as Slurm itself before the time limit
    wait_until(lambda: slurm("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}") == "COMPLETED")
    log = (tmp_path / "log").read_text()
    assert re.search(r"SIGTERM: ending after step \d+", log)
    assert re.search(r"resumed from .*: \d+ steps", log)
    assert [row["step"] for row in rows(folder)] == list(range(1, 201))
    expected = totals(SMALL, 200)
    assert {key: rows(folder)[-1][key] for key in expected} == expected
    attempts = [path.name.split("-", 3)[3] for path in (folder / "wandb").glob("offline-run-*")]
    assert attempts == [f"slurm-{job}"] * 2
