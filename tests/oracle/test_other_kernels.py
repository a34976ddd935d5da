"""Models whose reference code does another computation than the plan prices: everything but that computation, exactly.

========================  =============================================================================================
gated delta net, Mamba-2  transformers runs the recurrence in chunks, which takes more operations than the recurrence
                          that is priced; how many depends on the chunk. The depthwise convolution stands with it.
Llama 4                   transformers sends every token through every expert; what is trained elsewhere, and priced,
                          is the experts that the router chose.
sparse attention (DSA)    transformers attends with full keys and masks; the priced form works on the latents.
========================  =============================================================================================
"""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.plan import Plan
from oracle import transformers_models as oracle
from oracle.counter import KERNELS

CORES = r"\.(query_key|scores_value|index_scores)$"
#: Family -> the classes whose own kernels are left out, and the paths in the plan that price them.
OTHER = {
    "qwen3_next": (r"GatedDeltaNet$", r"\.(delta_rule|conv1d)$"),
    "qwen3_5_text": (r"GatedDeltaNet$", r"\.(delta_rule|conv1d)$"),
    "qwen3_5_moe_text": (r"GatedDeltaNet$", r"\.(delta_rule|conv1d)$"),
    "nemotron_h": (r"Mamba2Mixer$", r"\.(scan|conv1d)$"),
    "bamba": (r"BambaMixer$", r"\.(scan|conv1d)$"),
    "jamba": (r"MambaMixer$", r"\.(scan|conv1d|dt_proj)$"),
    "granitemoehybrid": (r"MambaLayer$", r"\.(scan|conv1d)$"),
    "kimi_linear": (r"DeltaAttention$", r"\.(delta_rule|[qkv]_conv1d)$"),
    "falcon_h1": (r"FalconH1Mixer$", r"\.(scan|conv1d)$"),
    "llama4_text": (r"TextExperts$", r"\.mlp\.experts\."),
    "deepseek_v32": (r"Attention$", CORES),
    "glm_moe_dsa": (r"Attention$", CORES),
}


def executed(model: torch.nn.Module, classes: str, sequences: int, length: int) -> int:
    """FLOPs of a forward pass, without what modules of these classes do outside their linear layers."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        oracle.run(model, sequences, length)
    counts = {name: sum(kernels.values()) for name, kernels in counter.get_flop_counts().items()}
    total, root = counter.get_total_flops(), type(model).__name__
    for name, module in model.named_modules():
        if re.search(classes, type(module).__name__):
            inner = [part for part, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
            total -= counts.get(f"{root}.{name}", 0) - sum(counts.get(f"{root}.{name}.{part}", 0) for part in inner)
    return total


def priced(plan: Plan, paths: str, lengths: list[int]) -> Any:
    """FLOPs of a forward pass, without the terms of these paths."""
    split = plan._split_by(lambda term: bool(re.search(paths, term.path)))
    return split["forward"][False].dot(plan.measure(lengths))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model_type", OTHER)
def test_everything_else(model_type: str, seed: int) -> None:
    classes, paths = OTHER[model_type]
    config = oracle.draw(model_type, seed)
    model = oracle.build(config, device="cpu")
    plan = compile_plan(from_huggingface(config), convention="executed")
    assert priced(plan, paths, [11, 11]) == executed(model, classes, 2, 11)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("model_type", OTHER)
def test_the_plan_says_so(model_type: str) -> None:
    """Where what runs is what is counted, and nowhere else; megatron-core's sparse attention does work on the latents."""
    config = oracle.draw(model_type, 0)
    read = from_huggingface(config)
    said = {name: compile_plan(read, convention=name).not_counted for name in CONVENTIONS}
    (sentence,) = set(said["executed"]) - set(said["exact"])
    assert re.match(r"\w[\w ]*: .* counted.*; (what runs|transformers' own code) ", sentence)
    assert {name for name, sentences in said.items() if sentence in sentences} == {"executed"}
    in_megatron = compile_plan(read, convention="executed", framework="megatron").not_counted
    assert (sentence in in_megatron) is (model_type not in ("llama4_text", "deepseek_v32", "glm_moe_dsa"))


def test_blocks_that_run_as_they_are_priced_say_nothing() -> None:
    config = oracle.draw("llama4_text", 0)
    config.moe_layers = []
    assert compile_plan(from_huggingface(config), convention="executed").not_counted == ()
