"""Layout search: what fits, why not, and whether its order is that of published runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.layouts import Layout
from bridge.planning.machines import known_machine
from bridge.planning.memory import USABLE, memory
from bridge.planning.search import OPTIMIZER, layouts, search
from bridge.planning.step_time import step_time

#: NVIDIA's tables for Megatron-Bridge (docs/performance-summary.md, releases 25.09 to 26.08), runs without FSDP.
PUBLISHED = list(csv.DictReader((Path(__file__).parents[1] / "data" / "published_layouts.csv").read_text().splitlines()))
RECIPES = {"GPT OSS 120B": "gpt-oss-120b", "LLAMA3.1_405B": "llama3.1-405b", "LLAMA3_70B": "llama3-70b"}


def ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share theirs."""
    return [(sum(other < value for other in values) + sum(other <= value for other in values) - 1) / 2 for value in values]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's."""
    first, second = ranks(a), ranks(b)
    mean = (len(a) - 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(first, second, strict=True))
    squares = [sum((x - mean) ** 2 for x in values) for values in (first, second)]
    return product / (squares[0] * squares[1]) ** 0.5


def estimated(row: dict[str, str], plan: Any) -> float:
    """tokens/s of one device."""
    size = {name: int(row[name]) for name in ("tp", "pp", "vp", "cp", "ep", "devices")}
    ends = plan.model.shape.num_layers % (size["pp"] * size["vp"]) != 0
    layout = Layout(
        devices=size["devices"],
        tensor_model_parallel_size=size["tp"],
        sequence_parallel=size["tp"] > 1,
        context_parallel_size=size["cp"],
        expert_model_parallel_size=size["ep"],
        expert_tensor_parallel_size=1 if size["ep"] > 1 else None,
        pipeline=PipelineLayout(
            pipeline_model_parallel_size=size["pp"],
            virtual_pipeline_model_parallel_size=size["vp"] if size["vp"] > 1 else None,
            account_for_embedding_in_pipeline_split=ends,
            account_for_loss_in_pipeline_split=ends,
        ),
        micro_batch_size=int(row["micro_batch_size"]),
        global_batch_size=int(row["global_batch_size"]),
    )
    number_format = "bf16" if row["precision"] == "BF16" else "fp4" if "FP4" in row["precision"] else "fp8"
    length = int(row["sequence_length"])
    needs = memory(plan, layout, OPTIMIZER, sequence_length=length, stages=(0, layout.stages - 1))
    machine = known_machine(row["system"])
    time = step_time(plan, layout, OPTIMIZER, machine, needs, sequence_length=length, number_format=number_format)
    assert time.bound <= time.estimate
    return length * int(row["global_batch_size"]) / layout.devices / time.estimate


@pytest.mark.parametrize(
    ("model", "runs", "correlation", "told"),
    [
        ("LLAMA3.1_405B", 29, 0.91, "0.91 for Llama 3.1 405B (29 runs)"),
        ("GPT OSS 120B", 31, 0.92, "0.92 for GPT-OSS 120B (31)"),
        ("LLAMA3_70B", 17, 0.86, "0.86 for Llama 3 70B (17)"),
    ],
)
def test_the_order_of_published_runs(model: str, runs: int, correlation: float, told: str) -> None:
    plan = compile_plan(load_recipe(RECIPES[model], validate=False))
    rows = [row for row in PUBLISHED if row["model"] == model]
    assert len(rows) == runs
    measured = [float(row["tokens_per_second_per_device"]) for row in rows]
    ours = [estimated(row, plan) for row in rows]
    assert round(rank_correlation(ours, measured), 2) == correlation
    ratios = [mine / theirs for mine, theirs in zip(ours, measured, strict=True)]
    assert 0.8 <= round(min(ratios), 1) <= round(max(ratios), 1) <= 1.9
    page = " ".join((Path(__file__).parents[2] / "docs" / "planning.md").read_text().split())
    assert told in page
    assert "The estimated speed is 0.8 to 1.9 times the measured one." in page


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 x 4 / (5 x 24)


@pytest.mark.all
def test_nvidias_layout_of_llama3_70b_is_among_the_best() -> None:
    """Megatron-Bridge's recipe for 64 H100 in bf16: TP 4, PP 4, VP 5, CP 2."""
    machine = known_machine("H100")
    cfg = load_recipe("llama3-70b", validate=False)
    found = search(cfg, machine, devices=64, sequence_length=8192, global_batch_size=256)
    assert len(found.candidates) == 384
    first = found.candidates[:4]
    assert "TP 4 + SP, PP 4 x 5, CP 2, DP 2" in [str(one.layout) for one in first]
    for one in found.candidates:
        assert one.needs.total <= USABLE * machine.capacity
        assert one.time.bound <= one.time.estimate
    times = [one.time.estimate for one in found.candidates]
    assert times == sorted(times)


def test_what_does_not_fit_is_told() -> None:
    found = search(load_recipe("llama3-70b", validate=False), known_machine("H100"), devices=8, sequence_length=8192,
                   global_batch_size=64)  # fmt: skip
    assert found.candidates == ()
    assert found.nearest is not None
    layout, needed = found.nearest
    assert layout.devices == 8
    # Weights, gradients and states of 70.6 billion parameters over eight devices, the embedding's and the ends' share on top.
    assert 18 * 70_553_706_496 / 8 <= needed <= 1.1 * 18 * 70_553_706_496 / 8


def test_recomputation_where_nothing_else_fits() -> None:
    """Llama 3 8B on one H200 with sequences of 16k: 18 bytes a parameter leave nothing for activations."""
    found = search(load_recipe("llama3-8b", validate=False), known_machine("B200"), devices=1, sequence_length=16384,
                   global_batch_size=1)  # fmt: skip
    assert [one.recompute for one in found.candidates] == ["full"]


def test_layouts_are_those_that_megatron_takes() -> None:
    shape = load_recipe("llama3-8b", validate=False).model
    found = list(layouts(shape, known_machine("H100"), 8, 8192, 128))
    assert len({str(one) + str(one.micro_batch_size) for one in found}) == len(found)
    for layout in found:
        assert layout.devices % layout.replica == 0
        assert shape.num_attention_heads % layout.tensor_model_parallel_size == 0
        if layout.chunks > 1:
            assert layout.micro_batches % layout.stages == 0
