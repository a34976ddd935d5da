"""A loop of one's own, in both forms, and accelerate's around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import documented
import tiny_llama
import torch

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.integrations.plain import Throughput

pytestmark = pytest.mark.usefixtures("no_measurement")

ROWS, ACCUMULATED, STEPS = 2, 2, 5


def batches(steps: int, seed: int = 0) -> list[list[dict[str, torch.Tensor]]]:
    """Micro-batches of ``ROWS`` rows, ``ACCUMULATED`` a step."""
    texts = tiny_llama.texts(steps * ACCUMULATED * ROWS, seed=seed)
    made = [tiny_llama.collate(texts[first : first + ROWS]) for first in range(0, len(texts), ROWS)]
    return [made[first : first + ACCUMULATED] for first in range(0, len(made), ACCUMULATED)]


def flops(data: list[list[dict[str, torch.Tensor]]]) -> int:
    """Length by length."""
    plan = compile_plan(from_huggingface(tiny_llama.model().config), "exact")
    return sum(plan.flops([length]) for step in data for batch in step for length in tiny_llama.lengths(batch))


def rows(file: Path) -> dict[int, int]:
    lines = map(json.loads, file.read_text().splitlines())
    return {row["step"]: row["throughput/total_flops"] for row in lines}


def test_the_documented_loop():
    model, data = tiny_llama.model(), batches(STEPS)
    names = {"model": model, "data": data, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    throughput = documented.run("Your own loop", names)["throughput"]
    before = dict(throughput.latest)
    throughput.end()  # said once
    assert throughput.latest == before
    assert (throughput.latest["step"], throughput.latest["throughput/total_flops"]) == (STEPS, flops(data))
    assert throughput.callback.verified.facts == {"verified": "parameters", "verified_details": []}


def test_a_model_and_an_optimizer_that_are_watched(tmp_path):
    """Evaluations and passes without gradients are not counted; totals go on in another job; no hook is left."""
    model, data = tiny_llama.model(), batches(STEPS + 2)
    file = tmp_path / "metrics.jsonl"

    def job(steps: list[Any], state: Any) -> Throughput:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        throughput = Throughput(model, convention="exact", log_interval=2, metrics_file=str(file))
        if state:
            throughput.load_state_dict(state)
        throughput.watch(optimizer)
        for step in steps:
            for batch in step:
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model(**step[0])
            with throughput.evaluation():
                model(**step[0]).loss.backward()
        throughput.settle()
        return throughput

    first = job(data[:3], None)
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["steps"], state["totals"]["total_flops"]) == (3, flops(data[:3]))
    first.end()
    job(data[3:], state).end()
    assert rows(file) == {step: flops(data[:step]) for step in (2, 3, 4, 6, 7)}
    assert not model._forward_pre_hooks


def test_a_loop_that_breaks_off(tmp_path):
    """The rows of full intervals are out, the step that it broke off in is in none, and no hook is left."""
    model, data = tiny_llama.model(), batches(5)
    throughput = Throughput(model, convention="exact", log_interval=2, metrics_file=str(tmp_path / "metrics.jsonl"))
    throughput.see_calls()
    for step in data[:4]:
        for batch in step:
            model(**batch)
        throughput.leave()
    model(**data[4][0])
    throughput.abandon()
    throughput.abandon()  # said once
    assert rows(tmp_path / "metrics.jsonl") == {2: flops(data[:2]), 4: flops(data[:4])}
    assert not model._forward_pre_hooks


def test_a_compiled_model_is_the_model():
    data, model = batches(2), tiny_llama.model()
    throughput = Throughput(torch.compile(model, backend="eager"), convention="exact", log_interval=2)
    for step in data:
        with throughput.step():
            for batch in step:
                throughput.count(batch)
    throughput.end()
    assert throughput.latest["throughput/total_flops"] == flops(data)
    assert throughput.callback.verified.facts == {"verified": "parameters", "verified_details": []}


def test_a_step_that_failed_is_none(tmp_path):
    throughput = Throughput(tiny_llama.model(), convention="exact", log_interval=1)
    with pytest.raises(RuntimeError, match="out of memory"), throughput.step():
        raise RuntimeError("out of memory")
    assert throughput.steps == 0


def test_a_model_that_nobody_knows_trains_all_the_same(caplog):
    throughput = Throughput(torch.nn.Linear(2, 2), log_interval=1)
    with throughput.step():
        throughput.count({"input_ids": torch.ones(2, 8, dtype=torch.long)})
    throughput.end()
    assert "the model cannot be priced" in caplog.text
    assert "throughput/total_flops" not in throughput.latest
    assert throughput.latest["throughput/total_tokens"] == 16


def test_accelerates_loop(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from bridge.integrations.accelerate_loop import add_throughput

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    data = batches(STEPS)
    logged: list[tuple[int, int]] = []

    class Recorder(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "recorder", False, None

        def store_init_configuration(self, values: Any) -> None: ...

        def log(self, values: Any, step: Any, **_: Any) -> None:
            logged.append((step, values["throughput/total_flops"]))

        def finish(self) -> None:
            logged.append((-1, 0))

    def job(steps: list[Any], load: bool) -> Throughput:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED, log_with=Recorder())
        accelerator.init_trackers("test")
        model = tiny_llama.model()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        throughput = add_throughput(accelerator, model, optimizer, convention="exact", log_interval=2)
        if load:
            accelerator.load_state(str(tmp_path))
        for step in steps:
            for batch in step:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch).loss)
                    optimizer.step()
                    optimizer.zero_grad()
        if not load:
            accelerator.save_state(str(tmp_path))
        accelerator.end_training()
        return throughput

    job(data[:3], load=False)
    assert logged == [(2, flops(data[:2])), (3, flops(data[:3])), (-1, 0)]
    second = job(data[3:], load=True)
    assert (second.latest["step"], second.latest["throughput/total_flops"]) == (5, flops(data))
