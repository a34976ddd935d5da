"""Models that only look on: teachers of a distillation, references of a preference loss."""

import pytest

from bridge.flops import compile_plan
from tests.flops.published import MODELS, full_config

LENGTHS = [1000, 37]


@pytest.mark.parametrize("convention", ["megatron", "maxtext", "exact", "executed"])
def test_a_teacher_runs_forward(convention):
    student, teacher = full_config(MODELS["qwen3-0.6b"]), full_config(MODELS["qwen3-30b-a3b"])
    alone = compile_plan({"model": student}, convention)
    together = compile_plan({"model": student, "teacher": {"model": teacher}}, convention)
    looked_on = compile_plan({"model": teacher}, convention).flops(LENGTHS, passes="forward")
    assert together.flops(LENGTHS) == alone.flops(LENGTHS) + looked_on
    assert together.breakdown(LENGTHS)["teacher_model"] == looked_on
    assert together.parameters() == alone.parameters()


@pytest.mark.parametrize("convention", ["megatron", "maxtext", "exact", "executed"])
def test_a_reference_model_makes_preference_training_four_thirds(convention):
    model = full_config(MODELS["llama3-8b"])
    alone = compile_plan({"model": model}, convention)
    with_reference = compile_plan({"model": model, "reference_model": True}, convention)
    # MaxText: DPO multiplies by 4/3, one forward pass beside forward and backward.
    assert with_reference.flops(LENGTHS) * 3 == alone.flops(LENGTHS) * 4
    assert with_reference.parameters() == alone.parameters()


def test_a_reference_of_adapted_weights_has_no_adapters():
    model = full_config(MODELS["llama3-8b"])
    adapted = {"model": model, "peft": {"kind": "lora", "dim": 8, "target_modules": ["linear_qkv"]}}
    plain = compile_plan({"model": model}, "exact").flops(LENGTHS, passes="forward")
    both = compile_plan(adapted | {"reference_model": True}, "exact")
    assert both.flops(LENGTHS) == compile_plan(adapted, "exact").flops(LENGTHS) + plain
