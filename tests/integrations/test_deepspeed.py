"""DeepSpeed on two ranks: totals are the brute-force sum over what both were fed, through a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="pip install deepspeed")
pytest.importorskip("transformers")

import tiny_llama

from bridge.config import from_huggingface
from bridge.flops import compile_plan

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(HERE / "deepspeed_worker.py"),
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero(ranks, stage):
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    seen = [rank[f"ZeRO {stage}"]["seen"] for rank in ranks]
    assert seen[0] != seen[1]
    expected = sum(plan.flops([length]) for lengths in seen for length in lengths)
    for rank in ranks:
        latest = rank[f"ZeRO {stage}"]["latest"]
        assert (latest["step"], latest["throughput/total_flops"]) == (4, expected)


def test_a_pipeline_is_refused_with_a_reason(ranks):
    for rank in ranks:
        assert rank["pipeline"].startswith("a pipeline of 2 stages draws every batch on its first and on its last stage")
