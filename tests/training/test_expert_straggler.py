"""Two real ranks of experts, of which one gets every token: it is the straggler, and its experts are the cause, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("megatron.core")

from launch import HERE, launch

from bridge.config import load_recipe
from bridge.flops import compile_plan

pytestmark = pytest.mark.all


def test_the_rank_with_the_tokens_is_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    options = ["model.moe_ffn_hidden_size=704", "model.moe_aux_loss_coeff=0", "data.batching=fixed", "train.train_iters=6",
               "train.global_batch_size=8", "logger.log_interval=5", f"logger.metrics_file={file}"]  # fmt: skip
    result = launch(2, str(HERE / "expert_straggler_worker.py"), "train", "tiny_moe", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    row = next(row for row in rows if "throughput/imbalance/work" in row)
    # Three layers, two experts a token; all of them are on the first rank, which has twice the mean.
    tokens, layers, topk, assignment = 8 * 256, 3, 2, 3 * 6 * 128 * 704
    part = layers * tokens * topk * assignment / compile_plan(load_recipe("tiny_moe", options[:-1])).flops([256] * 8)
    assert row["throughput/imbalance/work"] == pytest.approx(1 + part, rel=1e-12)
    assert (row["throughput/compute_time/slowest_rank"], row["throughput/compute_time/slowest_expert"]) == (0, 0)
    assert row["throughput/imbalance/expert_ranks"] == 2
    assert row["throughput/imbalance/experts"] == 2  # of four experts two have all
    told = result.stdout + result.stderr
    assert f"fuller experts (data 1.00 x, stage 1.00 x, experts {1 + part:.2f} x" in told
