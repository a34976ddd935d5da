"""DeepSpeed's engine on two ranks, at every stage of ZeRO: totals, checkpoints, monitors, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("pip install deepspeed", allow_module_level=True)
pytest.importorskip("transformers")

import tiny_llama
from launched import two_ranks

from bridge.config import from_huggingface
from bridge.flops import compile_plan

pytestmark = [pytest.mark.all, pytest.mark.slow]
STEPS, MICRO_BATCHES, ROWS = 5, 2, 2
VERIFIED = {3: {"verified": "no", "verified_details": ["not compared: its parameters are partitioned (DeepSpeed)"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return two_ranks("deepspeed_worker.py", folder, DS_ACCELERATOR="cpu")


def flops(ranks: list[dict[str, Any]], job: str, steps: int = STEPS) -> int:
    """Of the first steps of all ranks, row by row."""
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    rows = steps * MICRO_BATCHES * ROWS
    return sum(plan.flops([length]) for rank in ranks for length in rank[job]["seen"][:rows])


@pytest.mark.parametrize("stage", range(4))
def test_totals_at_each_stage_of_zero(ranks, folder, stage):
    """The second job goes on from the first one's checkpoint; a row is written at its end."""
    assert [len(rank[f"zero{stage}"]["seen"]) for rank in ranks] == [STEPS * MICRO_BATCHES * ROWS] * 2
    assert ranks[0][f"zero{stage}"]["seen"] != ranks[1][f"zero{stage}"]["seen"]
    for rank in ranks:
        for job, steps in (("first", 3), ("second", 5)):
            latest = rank[f"zero{stage}"][job]["latest"]
            assert (latest["step"], latest["throughput/total_flops"]) == (steps, flops(ranks, f"zero{stage}", steps))
            assert "throughput/doubtful" not in latest
            assert rank[f"zero{stage}"][job]["verified"] == VERIFIED.get(
                stage, {"verified": "parameters", "verified_details": []}
            )
    (file,) = folder.glob(f"zero{stage}/**/*throughput_total_tokens.csv")
    rows = [row for row in csv.reader(file.open()) if row[0] != "step"][:2]
    seen = [rank[f"zero{stage}"]["seen"] for rank in ranks]
    expected = [[3 * 8, sum(sum(one[:12]) for one in seen)], [5 * 8, sum(map(sum, seen))]]  # over samples, as its own
    assert [[int(samples), float(tokens)] for samples, tokens in rows] == expected


def test_a_checkpoint_without_totals_makes_them_lower_bounds(ranks):
    for rank in ranks:
        latest = rank["forgetful"]["latest"]
        assert (latest["step"], latest["throughput/incomplete"]) == (5, 1)
        assert latest["throughput/total_flops"] == flops(ranks, "forgetful", 2)


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ("pipeline", "a pipeline's first and last stage both draw each micro-batch"),
        ("ulysses", r"2 ranks hold parts of each sequence \(DeepSpeed-Ulysses\), not whole ones"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_a_reason(ranks, layout, why):
    for rank in ranks:
        assert rank[layout]["latest"] == {}
    (said,) = ranks[0][layout]["said"]
    assert re.search(why, said)
