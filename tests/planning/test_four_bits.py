"""QLoRA: the work of LoRA, and weights in four bits."""

from __future__ import annotations

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.plan import Plan
from bridge.planning.four_bits import stored_bytes
from bridge.planning.layouts import Layout
from bridge.planning.states import state_bytes

ONE = Layout(devices=1, micro_batch_size=1, global_batch_size=1)
#: Weights of Llama 3 8B's linear layers, those of one layer by module.
LAYER = {"linear_qkv": 4096 * 6144, "linear_proj": 4096 * 4096, "linear_fc1": 4096 * 28672, "linear_fc2": 14336 * 4096}
LINEAR = 32 * sum(LAYER.values())


def plan(*options: str, name: str = "llama3-8b") -> Plan:
    return compile_plan(load_recipe(name, ["peft.dim=16", *options], validate=False), "exact")


LORA, QLORA = plan("peft.kind=lora"), plan("peft.kind=qlora")


@pytest.mark.parametrize("passes", ["forward", "training", "hardware"])
def test_the_work_is_that_of_lora(passes: str) -> None:
    assert QLORA.flops([4096, 512], passes=passes) == LORA.flops([4096, 512], passes=passes)
    assert QLORA.evaluate_formats(QLORA.measure([4096])) == LORA.evaluate_formats(LORA.measure([4096]))
    assert QLORA.parameters() == LORA.parameters()


def test_memory() -> None:
    (plain,), (packed,) = LORA.memory(ONE, sequence_length=512), QLORA.memory(ONE, sequence_length=512)
    stored = LINEAR // 2 + LINEAR // 64 + 4 * LINEAR // (64 * 256)
    assert plain.states.weights - packed.states.weights == 2 * LINEAR - stored
    assert (packed.states.gradients, packed.states.optimizer) == (plain.states.gradients, plain.states.optimizer)
    assert packed.working - plain.working == 2 * LAYER["linear_fc1"]
    assert packed.activations == plain.activations
    assert state_bytes(LORA) - state_bytes(QLORA) == 2 * LINEAR - stored
    assert round(8 * stored / LINEAR, 3) == 4.127


def test_tensor_parallel_ranks_hold_their_part() -> None:
    two = Layout(devices=2, tensor_model_parallel_size=2, micro_batch_size=1, global_batch_size=1)
    (plain,), (packed,) = (one.memory(two, sequence_length=512) for one in (LORA, QLORA))
    half = LINEAR // 2
    assert plain.states.weights - packed.states.weights == 2 * half - stored_bytes(half)


def test_what_trains_stays_wide() -> None:
    """A frozen-but-named layer trains in full: it is not stored in four bits."""
    options = ("peft.target_modules=[linear_qkv]", "peft.train=['*linear_fc2']")
    (plain,), (packed,) = (plan(f"peft.kind={kind}", *options).memory(ONE, sequence_length=512) for kind in ("lora", "qlora"))
    frozen = LINEAR - 32 * LAYER["linear_fc2"]
    assert plain.states.weights - packed.states.weights == 2 * frozen - stored_bytes(frozen)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("q_proj", 4096), ("k_proj", 1024), ("v_proj", 1024), ("gate_proj", 14336), ("up_proj", 14336)],
)
def test_parts_of_fused_layers(theirs: str, ours: int) -> None:
    """Adapters of Hugging Face's names are as wide as the part that they name: r (k + n) weights a layer."""
    adapted = plan("peft.kind=lora", f"peft.target_modules=[{theirs}]")
    assert adapted.parameters()["trainable"] == 32 * 16 * (4096 + ours)
    lora_b = [term for term in adapted.terms if term.name == "lora_B"]
    assert [(term.k, term.n) for term in lora_b] == [(16, ours)] * 32


def test_the_published_ratio() -> None:
    """arXiv:2305.14314: double quantization leaves 0.127 bits a parameter for the scales, where fp32 scales take 0.5."""
    assert 8 * stored_bytes(2**24) / 2**24 - 4 == pytest.approx(8 / 64 + 32 / (64 * 256))
