"""`bridge profile` on real steps of one rank."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from launch import environment, launch

from bridge.config import load_recipe
from bridge.flops import compile_plan

pytestmark = pytest.mark.slow

SMALL = ["model.num_layers=2", "data.batching=fixed", "data.max_documents=50"]
SMALL += ["train.global_batch_size=4", "train.micro_batch_size=2"]


OPTIONS = ("--steps", "2", "--warm-up", "1", "--json")


def profile(folder: Path, *arguments: str) -> dict:
    """As a user starts it."""
    command = [sys.executable, "-m", "bridge", "profile", *arguments, *OPTIONS]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_flops_and_seconds_of_real_steps(tmp_path):
    """Two steps of two micro-batches of two sequences of 256 tokens."""
    found = profile(tmp_path, "tiny", *SMALL)
    rows = {row["name"]: row for row in found["rows"]}
    plan = compile_plan(load_recipe("tiny", SMALL), "exact")
    assert (found["steps"], found["micro_batches"], found["ranks"]) == (2, 4, 1)
    assert found["flops"] == plan.flops([256] * 8)
    assert sum(row["flops"] for row in rows.values()) == found["flops"]
    assert sum(row["seconds"] for row in rows.values()) <= found["seconds"]

    layer = "decoder.layers.*."
    tokens, layers = 8 * 256, 2
    fc1 = rows[layer + "mlp.linear_fc1"]
    assert fc1["forward_flops"] == 2 * tokens * 128 * 2 * 352 * layers
    assert fc1["backward_flops"] == 2 * fc1["forward_flops"]
    core = rows[layer + "self_attention.core_attention"]
    assert core["forward_flops"] == 2 * 2 * (8 * 256 * 257 // 2) * 128 * layers
    for row in (fc1, core, rows[layer + "self_attention.linear_qkv"], rows["output_layer"]):
        assert row["forward_seconds"] > 0
        assert row["backward_seconds"] > 0
        assert row["rate"] == pytest.approx(row["flops"] / row["seconds"])
    assert rows[layer + "input_layernorm"]["flops"] == 0
    assert {"optimizer", "data", "forward-compute", "backward-compute"} <= rows.keys()
    losses = [row["lost_seconds"] for row in found["rows"]]
    assert losses == sorted(losses, reverse=True)

    trace = json.loads(gzip.decompress((tmp_path / found["trace"]).read_bytes()))["traceEvents"]
    counted = [event for event in trace if event.get("cat") == "bridge"]
    assert sum(event["args"]["FLOPs"] for event in counted) == found["flops"]
    assert len([event for event in counted if event["name"] == "output_layer"]) == 2 * 4
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))

    # A run's folder names its recipe.
    again = launch(1, "-m", "bridge", "profile", "runs/tiny-profile", "--out", "again", *OPTIONS, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-4000:]
    assert json.loads(again.stdout)["flops"] == found["flops"]
