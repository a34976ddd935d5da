"""Other people's loops on two ranks, in one launch: every total is the brute-force sum over what was fed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
import megatron_bridge_stubs
import megatron_fed as fed
import tiny_llama

from bridge.config import from_huggingface
from bridge.flops import compile_plan

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops")
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "worker.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def total(replicas: int, steps: int = fed.STEPS) -> int:
    """FLOPs of the first steps, length by length."""
    plan = compile_plan(fed.MODEL, "exact")
    rows = [row for replica in range(replicas) for row in fed.lengths(replica)[: steps * fed.MICRO_BATCHES]]
    return sum(plan.flops([length]) for row in rows for length in row)


@pytest.mark.skipif(megatron_bridge_stubs.root() is None, reason="Megatron-Bridge is not installed: see the Makefile")
@pytest.mark.parametrize(("layout", "replicas"), [(0, 2), (1, 1)], ids=["data parallel", "pipeline"])
def test_megatron_bridges_own_loop(ranks, layout, replicas):
    for rank in ranks:
        result = rank["megatron_bridge"][layout]
        assert result["steps"] == result["latest"]["step"] == fed.STEPS
        assert result["latest"]["throughput/total_flops"] == total(replicas)


@pytest.mark.parametrize(("layout", "replicas"), [(0, 2), (1, 1)], ids=["data parallel", "virtual pipeline"])
def test_a_megatron_lm_loop(ranks, layout, replicas):
    for rank in ranks:
        latest = rank["megatron_lm"][layout]["latest"]
        assert latest["step"] == fed.STEPS
        assert latest["throughput/total_flops"] == total(replicas)


def test_the_built_model_is_held_against_what_is_priced(ranks):
    """Megatron-LM's first layout, and Megatron-Bridge's both; in a pipeline Megatron-LM's forward step sees one stage of it."""
    equal = {"verified": "parameters", "verified_details": []}
    not_seen = {"verified": "no", "verified_details": ["not compared: no model was given"]}
    for rank in ranks:
        assert [result["verified"] for result in rank["megatron_lm"]] == [equal, not_seen]
        assert all(result["verified"] == equal for result in rank.get("megatron_bridge", []))


def test_arguments_that_are_read_as_another_model_are_found_out_at_the_start(ranks):
    """An encoder of as many layers, and a decoder that attends to it, where a decoder alone was built."""
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48 + 2 * 32
    for rank in ranks:
        (result,) = rank["megatron_lm_misread"]
        assert result["verified"] == {
            "verified": "no",
            "verified_details": [
                f"encoder: plan {4 * layer + 32:,}, model has none",
                "decoder.layers.*.cross_attention (4 layers): plan 3,072, model has none",
                "decoder.layers.*.pre_cross_attn_layernorm (4 layers): plan 32, model has none",
            ],
        }
        assert result["latest"]["throughput/doubtful"] == 1


def test_rows_of_megatron_lm_follow_its_log_interval(folder):
    """The last layout's file; iteration 3 was evaluated, on as many micro-batches as a step has."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["throughput/total_flops"] for row in rows] == [total(1, steps) for steps in (2, 4, 5)]
    facts = json.loads((folder / "metrics.summary.json").read_text())
    assert facts["pipeline_model_parallel_size"] == facts["virtual_pipeline_model_parallel_size"] == 2
    assert facts["formula_inputs"]["padded_vocab_size"] == fed.MODEL["vocab_size"]


def test_the_trainer_in_data_parallel(ranks, folder):
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    seen = [rank["trainer"]["seen"] for rank in ranks]
    assert seen[0] != seen[1]

    def flops(micro_batches: int) -> int:
        return plan.flops([length for rank in seen for batch in rank[:micro_batches] for length in batch])

    for rank in ranks:
        assert rank["trainer"]["latest"]["step"] == 5
        assert rank["trainer"]["latest"]["throughput/total_flops"] == flops(10)
    saved = json.loads((folder / "trainer" / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["ThroughputTrainerCallback"]["attributes"]["totals"]["total_flops"] == flops(6)
    rows = {row["step"]: row["throughput/total_flops"] for row in saved["log_history"] if "loss" in row}
    assert rows == {2: flops(4)}
