"""The plan's integer equals what torch counts while megatron-core's own GPTModel runs on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from bridge.config import Config, ModelConfig, PeftConfig
from bridge.flops import compile_plan
from bridge.flops.plan import Plan
from oracle.megatron_cases import Case, cases, trained_cases
from oracle.process import counted_by

pytest.importorskip("megatron.core")
CASES = cases()


@cache
def counted(shapes: str) -> dict[str, dict[str, Any]]:
    """What megatron-core counts of some of the shapes, case by case: one process for all."""
    return counted_by("count_megatron", *shapes)


def plan_of(case: Case) -> Plan:
    # The cases build megatron-core's vocabulary unpadded.
    config = Config(model=ModelConfig(**case.model, make_vocab_size_divisible_by=1))
    if case.lora:
        config.peft = PeftConfig(dim=case.lora, target_modules=list(case.targets))
        return compile_plan(config, convention="executed")
    return compile_plan(config, convention="executed", trainable=case.trains)


@pytest.mark.all(but=["*-0-*"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpt_model(case: Case) -> None:
    found = counted("0" if case.name.split("-")[1] == "0" else "123")[case.name]
    assert "error" not in found, found["error"]
    plan = plan_of(case)
    lengths = [case.length] * case.batch_size
    assert plan.flops(lengths, passes="forward") == found["forward"]
    if found["training"] >= 0:
        # With recomputation the counter sees what the hardware does, which is more than the model's work.
        assert plan.flops(lengths, passes="hardware") == found["training"]
    if "recompute_granularity" not in case.model:
        assert plan.flops(lengths, passes="training") == plan.flops(lengths, passes="hardware")
    assert plan.parameters()["total"] == found["parameters"]
    assert plan.parameters()["trainable"] == found["trainable"]


@pytest.mark.parametrize("case", trained_cases(), ids=lambda case: case.name)
def test_what_is_trained_is_what_is_counted(case: Case) -> None:
    """The model that ``bridge train`` builds, with fused attention, costs what the plan says."""
    found = counted("0")[f"trained-{case.name}"]
    assert "error" not in found, found["error"]
    plan = plan_of(case)
    lengths = [case.length] * case.batch_size
    assert plan.flops(lengths, passes="forward") == found["forward"]
    assert plan.flops(lengths) == found["training"]
    assert plan.parameters()["total"] == found["parameters"]
