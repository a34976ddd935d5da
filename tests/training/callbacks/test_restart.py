"""The real program: killed in the middle and resumed on another layout it ends at the unbroken run's integers.

In the same runs: W&B that cannot be reached, and a metrics file on a full disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import kill_all

pytestmark = [pytest.mark.all, pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")]
ROOT = Path(__file__).parents[3]
STEPS = 24
OPTIONS = [
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.ffn_hidden_size=64",
    "model.seq_length=64",
    f"train.train_iters={STEPS}",
    "train.global_batch_size=8",
    "train.micro_batch_size=1",  # one document: every layout pads, and so computes, the same
    "data.max_documents=300",
    "logger.log_interval=3",
    "checkpoint.save_interval=4",
]


def command(folder: Path, ranks: int, *options: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    paths = [f"logger.dir={folder}", f"checkpoint.save={folder}/checkpoints", f"checkpoint.load={folder}/checkpoints"]
    return [*launch, "-m", "bridge", "train", str(ROOT / "recipes" / "tiny.yaml"), *OPTIONS, *paths, *options]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NETRC": os.devnull,
        **more,
    }


def train(folder: Path, ranks: int, *options: str, **env: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log", "a") as log:
        code = subprocess.run(
            command(folder, ranks, *options),
            env=environment(**env),
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=200,
            check=False,
        ).returncode
    text = (folder / "log").read_text()
    assert code == 0, text[-3000:]
    return text


def rows(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def kill_in_the_middle(folder: Path, ranks: int, *options: str) -> int:
    """Start a run and kill all of it, without warning, once it is past a checkpoint; returns the last step logged."""
    folder.mkdir(parents=True)
    with open(folder / "log", "w") as log:
        job = subprocess.Popen(
            command(folder, ranks, *options),
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 150
        try:
            while not (rows(folder) and rows(folder)[-1]["step"] >= 9):
                lives = job.poll() is None and time.monotonic() < end
                assert lives, (folder / "log").read_text()[-3000:]
                time.sleep(0.02)
        finally:
            kill_all(job)
    return rows(folder)[-1]["step"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """What a run on one rank prints, from the first step to the last, with a full disk and no way to W&B's server."""
    return train(
        tmp_path_factory.mktemp("unbroken"),
        1,
        "logger.metrics_file=/dev/full",
        "checkpoint.save=null",
        "checkpoint.load=null",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_INIT_TIMEOUT="1",
    )


def printed(text: str, name: str) -> int:
    """A number of the table at the end."""
    (line,) = [line for line in text[text.index("== done ==") :].splitlines() if line.startswith(name)]
    return int(line.split()[-1].replace(",", ""))


@pytest.mark.slow
def test_kill_and_resume_on_another_layout_ends_at_the_same_integers(unbroken, tmp_path):
    folder = tmp_path / "killed"
    killed_at = kill_in_the_middle(folder, 2)
    assert killed_at < STEPS
    train(folder, 2, "parallel.tensor_model_parallel_size=2")
    logged = rows(folder)
    assert [row["step"] for row in logged] == list(range(3, STEPS + 1, 3))
    for key, name in (("throughput/total_flops", "FLOPs"), ("throughput/total_tokens", "tokens")):
        assert logged[-1][key] == printed(unbroken, name)
        assert all(before[key] < after[key] for before, after in zip(logged, logged[1:], strict=False))
    folders = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({path.name.rsplit("-", 1)[1] for path in folders}) == 1  # the run id is kept


@pytest.mark.slow
def test_a_full_disk_and_an_unreachable_wandb_cost_two_warnings(unbroken):
    lost = "JsonlTracker stopped: [Errno 28] No space left on device. Training continues without it."
    assert unbroken.count(lost) == 1
    assert unbroken.count("W&B cannot be reached") == 1
    assert f"step {STEPS}/{STEPS}" in unbroken
    assert "Traceback" not in unbroken
    assert "wandb sync" in unbroken
