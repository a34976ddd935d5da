"""Other people's loops on two ranks, in one launch: every total is the brute-force sum over what was fed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
import megatron_bridge_stubs
import megatron_fed as fed
import tiny_llama
from launch import launch

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.metrics.goodput import FILE, job_of, read_events
from bridge.report.runs import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loops")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    done = launch(2, str(Path(__file__).with_name("worker.py")), str(folder), GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def total(replicas: int, steps: int | Iterable[int] = fed.STEPS) -> int:
    """FLOPs of the first steps, or of these, length by length."""
    plan = compile_plan(fed.MODEL, "exact")
    chosen = range(steps) if isinstance(steps, int) else steps
    ours = [slice(step * fed.MICRO_BATCHES, (step + 1) * fed.MICRO_BATCHES) for step in chosen]
    rows = [row for replica in range(replicas) for part in ours for row in fed.lengths(replica)[part]]
    return sum(plan.flops([length]) for row in rows for length in row)


@pytest.mark.skipif(megatron_bridge_stubs.root() is None, reason="Megatron-Bridge is not installed: see the Makefile")
@pytest.mark.parametrize(("layout", "replicas"), [(0, 2), (1, 1)], ids=["data parallel", "pipeline"])
def test_megatron_bridges_own_loop(ranks, layout, replicas):
    for rank in ranks:
        result = rank["megatron_bridge"][layout]
        assert result["steps"] == result["latest"]["step"] == fed.STEPS
        assert result["latest"]["throughput/total_flops"] == total(replicas)


SAVED_AND_LEFT = {  # core 0.16 until --exit-interval 3, core 0.19 from its checkpoint on
    "exits": ["log 1", "log 2", "save 2", "log 3", "evaluate iteration 3", "save 3", "wandb.finish"],
    "goes on": [
        "log 4",
        "save 4",
        "log 5",
        "save 5",
        *(f"evaluate iteration 5 on {name} set" for name in ("validation", "test")),
        "wandb.finish",
    ],
}


@pytest.mark.parametrize(("job", "steps"), [("exits", (2, 3)), ("goes on", (4, 5))])
def test_a_job_of_megatron_lm_and_the_one_that_goes_on_from_it(ranks, folder, job, steps):
    """The last row is in a file and in the W&B run whatever ends the job, and totals are those of both jobs."""
    for number, rank in enumerate(ranks):
        result = rank["megatron_lm"][job]
        assert [call for call in result["calls"] if number or call != "wandb.finish"] == [
            call for call in SAVED_AND_LEFT[job] if number or call != "wandb.finish"
        ]
        assert result["code"] == (0 if job == "exits" else None)
        assert result["latest"]["throughput/total_flops"] == total(2, steps[-1])
        assert result["verified"] == {"verified": "parameters", "verified_details": []}
    expected = {step: total(2, step) for step in steps}
    assert flops_by_step(rows_of(folder / f"{job.replace(' ', '_')}.jsonl")) == expected
    runs = sorted((folder / "wandb_lm").glob("wandb/offline-run-*/run-*.wandb"))
    assert flops_by_step(open_run(runs[job == "goes on"]).rows) == expected


def test_totals_lie_beside_megatron_lms_checkpoints(ranks, folder):
    written = {path.parent.name: json.loads(path.read_text()) for path in (folder / "checkpoints").glob("iter_*/throughput.json")}
    assert {name: (state["total_flops"], state["complete"]) for name, state in written.items()} == {
        f"iter_{step:07d}": (total(2, step), True) for step in (2, 3, 4, 5)
    }


def test_the_life_of_a_job_in_megatron_lm(ranks, folder):
    """Its loop tells of evaluations, checkpoints and waits for data; the second training goes on where the first has ended."""
    events = read_events(folder / "life" / FILE)
    job = job_of(events)
    assert (job.steps, job.lost_steps, job.interruptions) == (5, 0, 1)
    assert (job.flops, job.lost_flops, job.unknown) == (total(2), 0, ("import", "groups", "load"))
    told = [(event["event"], event["step"]) for event in events if event["event"] in ("evaluation", "checkpoint")]
    assert told == [("checkpoint", 2), ("evaluation", 3), ("checkpoint", 3), ("checkpoint", 4)]


def test_a_checkpoint_without_totals_makes_them_lower_bounds(ranks):
    for rank in ranks:
        latest = rank["megatron_lm"]["forgets"]["latest"]
        assert (latest["step"], latest["throughput/incomplete"]) == (5, 1)
        assert latest["throughput/total_flops"] == total(2, (3, 4))


def test_steps_that_megatron_lm_skips_are_not_counted(ranks, folder):
    """In a virtual pipeline: ``--iterations-to-skip 1`` draws the batches of the second and trains on none of them."""
    for rank in ranks:
        latest = rank["megatron_lm"]["pipeline"]["latest"]
        assert (latest["step"], latest["throughput/total_flops"]) == (5, total(1, (0, 2, 3, 4)))
    facts = json.loads((folder / "pipeline.summary.json").read_text())
    assert facts["pipeline_model_parallel_size"] == facts["virtual_pipeline_model_parallel_size"] == 2
    assert facts["formula_inputs"]["padded_vocab_size"] == fed.MODEL["vocab_size"]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def flops_by_step(rows: Iterable[dict[str, Any]]) -> dict[int, int]:
    return {row["step"]: row["throughput/total_flops"] for row in rows if "throughput/total_flops" in row}


def test_the_built_model_is_held_against_what_is_priced(ranks):
    """In Megatron-Bridge's layouts and in a pipeline of Megatron-LM's."""
    equal = {"verified": "parameters", "verified_details": []}
    for rank in ranks:
        results = [*rank.get("megatron_bridge", []), rank["megatron_lm"]["pipeline"]]
        assert all(result["verified"] == equal for result in results)


def test_arguments_that_are_read_as_another_model_are_found_out_at_the_start(ranks):
    """An encoder of as many layers, and a decoder that attends to it, where a decoder alone was built."""
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48 + 2 * 32
    for rank in ranks:
        result = rank["megatron_lm_misread"]
        assert result["verified"] == {
            "verified": "no",
            "verified_details": [
                f"encoder: plan {4 * layer + 32:,}, model has none",
                "decoder.layers.*.cross_attention (4 layers): plan 3,072, model has none",
                "decoder.layers.*.pre_cross_attn_layernorm (4 layers): plan 32, model has none",
            ],
        }
        assert result["latest"]["throughput/doubtful"] == 1


def test_a_loop_around_accelerate(ranks):
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    seen = [rank["accelerate"]["seen"] for rank in ranks]
    assert seen[0] != seen[1]
    expected = sum(plan.flops([length]) for rank in seen for batch in rank for length in batch)
    for rank in ranks:
        latest = rank["accelerate"]["latest"]
        assert (latest["step"], latest["throughput/total_flops"]) == (5, expected)


def test_the_documented_adapter(ranks):
    """The logger of the first rank has the rows of both, once; a resumed training goes on."""
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    seen = [rank["documented"]["seen"] for rank in ranks]
    assert seen[0] != seen[1]

    def flops(step: int) -> int:
        return sum(plan.flops([length]) for rank in seen for batch in rank[: 2 * step] for length in batch)

    first, second = ({str(step): flops(step) for step in steps} for steps in ((2, 4, 6, 7), (6, 7)))
    assert ranks[0]["documented"]["totals"] == [first, second]
    assert ranks[1]["documented"]["totals"] == [{}, {}]
    assert [rank["documented"]["verified"] for rank in ranks] == [{"verified": "parameters", "verified_details": []}] * 2


def test_lightning_in_data_parallel(ranks, folder):
    """11 samples on two ranks: its sampler repeats one of them, which is trained on twice and counted twice."""
    if "lightning" not in ranks[0]:
        pytest.skip("pip install lightning")
    plan = compile_plan(from_huggingface({"model_type": "llama", **tiny_llama.CONFIG}), "exact")
    seen = [rank["lightning"]["seen"] for rank in ranks]
    taken = [length for rank in seen for batch in rank for length in batch]
    fed = [len(text["input_ids"]) for text in tiny_llama.texts(11)]
    repeated = Counter(taken) - Counter(fed)
    assert repeated.total() == 1
    assert Counter(taken) - repeated == Counter(fed)
    for rank in ranks:
        latest = rank["lightning"]["latest"]
        assert (latest["step"], latest["throughput/total_flops"]) == (3, plan.flops(taken))
    with next(folder.glob("lightning/**/metrics.csv")).open() as file:
        written = [row for row in csv.DictReader(file) if row["throughput/total_flops"]]
    rows = {int(row["step"]): int(row["throughput/total_flops"]) for row in written}
    after_two = [length for rank in seen for batch in rank[:4] for length in batch]
    assert rows == {2: plan.flops(after_two), 3: plan.flops(taken)}


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
