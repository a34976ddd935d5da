"""torchtitan's Trainer on two ranks: packed documents, sharded and tensor parallel, checkpoints, data that run out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("torchtitan") is None:
    pytest.skip("pip install torchtitan", allow_module_level=True)

from launched import two_ranks
from titan_fed import ACCUMULATED, MODEL, documents

from bridge.flops import compile_plan

pytestmark = [pytest.mark.all, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchtitan")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return two_ranks("torchtitan_worker.py", folder)


def flops(replicas: int, steps: int) -> int:
    """Document by document."""
    plan = compile_plan(MODEL, "exact")
    fed = [documents(replica, number) for replica in range(replicas) for number in range(steps * ACCUMULATED)]
    return sum(plan.flops([length]) for rows in fed for row in rows for length in row)


@pytest.mark.parametrize(
    ("job", "replicas", "steps"),
    [("sharded", 2, 3), ("goes on", 2, 5), ("runs out", 2, 3), ("tensor parallel", 1, 3)],
)
def test_totals_are_the_sum_over_documents(ranks, job, replicas, steps):
    """Fully sharded, from its checkpoint on, where data run out within a step, and on ranks that share their batches."""
    for rank in ranks:
        latest = rank[job]["latest"]
        assert (latest["step"], latest["throughput/total_flops"]) == (steps, flops(replicas, steps))
        assert "throughput/incomplete" not in latest


def test_totals_lie_beside_its_checkpoints(ranks, folder):
    written = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("sharded/checkpoint/*/throughput.json")}
    assert {name: state["total_flops"] for name, state in written.items()} == {
        f"step-{step}": flops(2, step) for step in (2, 3, 4, 5)
    }


def test_rows_are_in_its_loggers(ranks, folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard")
    rows = {}
    for file in sorted(folder.glob("sharded/**/*tfevents*")):
        events = accumulator.EventAccumulator(str(file)).Reload()
        rows |= {event.step: event.value for event in events.Scalars("throughput/total_tokens")}
    assert rows == {step: 2 * step * ACCUMULATED * 2 * MODEL["seq_length"] for step in (2, 3, 4, 5)}
