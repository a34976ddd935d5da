"""Numbers in the documentation that follow from the code or from arithmetic: each is worked out as its sentence says.

The README's claims about other people's numbers are in test_readme.py, the generated tables in test_generated.py, the published
rows and their rank correlation in tests/planning.  What was measured says when and on what, and is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from math import ceil, log2
from pathlib import Path

import pytest

import bridge
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.planning.memory import USABLE
from bridge.planning.states import state_bytes

ROOT = Path(__file__).parents[2]


def over_megatron(convention: str, *rules: str, length: int = 8192) -> str:
    run = llama(length)
    return f"{float(run.under(convention, *rules).flops_per_token / run.under('megatron').flops_per_token):.3f}"


@cache
def llama(length: int) -> bridge.planning.check.Check:  # type: ignore[name-defined]
    return bridge.check("llama3-8b", sequence_length=length)


def trained(name: str) -> dict[str, int]:
    return compile_plan(load_recipe(name), "exact").parameters()


def gigaflops(name: str, convention: str, length: int) -> float:
    return float(compile_plan(load_recipe(name), convention).flops([length]) / length / 10**9)


def hops(ranks: int) -> int:
    return 2 * ceil(log2(ranks))


BEFORE, SINCE = ("executed", "whole_window", "embedding_counted"), ("maxtext", "half_window", "embedding_counted")
TINY = load_recipe("tiny")

#: Page, what stands there with {} for the numbers, and how each is worked out.
CLAIMS: list[tuple[str, str, tuple[Callable[[], str], ...]]] = [
    ("README.md", "parameters       {} k ({})", (
        lambda: f"{trained('tiny')['total'] / 1e3:.0f}", lambda: f"{trained('tiny')['total']:,}")),
    ("README.md", "FLOPs per token  {} M at 256 tokens, megatron convention", (
        lambda: f"{compile_plan(TINY).flops([256]) / 256 / 1e6:.2f}",)),
    ("README.md", "- More than {} published models", (
        lambda: str(len(list((ROOT / "recipes/models").glob("*.yaml"))) // 100 * 100),)),
    ("README.md", "[{} published ones](docs/published.md) are counted again", (
        lambda: str(len(json.loads((ROOT / "tests/data/published_throughput.json").read_text())["rows"]) // 100 * 100),)),
    ("docs/architecture.md", "A step of Llama 3.1 405B on 128 sequences of 128k tokens is {} FLOPs, more than 64 bits hold.", (
        lambda: f"{float(compile_plan(load_recipe('llama3.1-405b'), 'exact').flops([2**17] * 128)):.1e}".replace("+", ""),)),
    ("docs/callback.md", "of two ranks, one twice as slow shows {}", (lambda: f"{2 / ((1 + 2) / 2):.2f}",)),
    ("docs/faq.md", "a true 39% on four context ranks is reported as {}%", (lambda: str(39 * 4),)),
    ("docs/fine-tuning.md", "parameters       {} k ({}), {} k trained ({}%)", (
        lambda: f"{trained('tiny_lora')['total'] / 1e3:.0f}", lambda: f"{trained('tiny_lora')['total']:,}",
        lambda: f"{trained('tiny_lora')['trainable'] / 1e3:.1f}",
        lambda: f"{100 * trained('tiny_lora')['trainable'] / trained('tiny_lora')['total']:.2f}")),
    ("docs/frameworks.md", "Differs from Megatron by {}%", (lambda: f"{100 * float(over_megatron('executed')) - 100:.1f}",)),
    ("docs/frameworks.md", "for Llama 3 8B the whole square alone is {} at\n4,096 tokens and {} at 8,192", (
        lambda: over_megatron("executed", length=4096), lambda: over_megatron("executed"))),
    ("docs/frameworks.md", "verl until 0.7.0, which also counted the embedding, {} and {}", (
        lambda: over_megatron(*BEFORE, length=4096), lambda: over_megatron(*BEFORE))),
    ("docs/frameworks.md", "verl since 0.7.1, with the embedding alone, {} and {}", (
        lambda: over_megatron(*SINCE, length=4096), lambda: over_megatron(*SINCE))),
    ("docs/planning.md", "{} bytes per parameter (bf16 weights, fp32 gradients, Adam)", (
        lambda: str(state_bytes(compile_plan(TINY)) // trained("tiny")["total"]),)),
    ("docs/planning.md", "**Does not fit** means more than {}% of the memory", (lambda: f"{100 * USABLE:.0f}",)),
    ("docs/scale.md", "| hops of a tree, up and down | {} | {} |", (lambda: str(hops(16384)), lambda: str(hops(100_000)))),
    ("docs/scale.md", "| network at 5, 10, 20 us per hop | {}, {}, {} ms | {}, {}, {} ms |", tuple(
        lambda ranks=ranks, us=us: f"{hops(ranks) * us / 1e3:.2f}" for ranks in (16384, 100_000) for us in (5, 10, 20))),
    ("docs/scale.md", "| bytes on the wire at 50 GB/s | {} ns |", (lambda: f"{2 * (208 + 16) / 50e9 * 1e9:.0f}",)),
    ("docs/scale.md", "| if it were waited for, share of 10 steps of 5 s | {} % | {} % |", tuple(
        lambda ranks=ranks: f"{100 * hops(ranks) * 10e-6 / 50:.4f}" for ranks in (16384, 100_000))),
    ("CHANGELOG.md", "Qwen3 8B over Llama 3 8B: {}, not {}", (
        lambda: f"{gigaflops('qwen3-8b', 'megatron', 4096) / gigaflops('llama3-8b', 'megatron', 4096):.3f}",
        lambda: f"{gigaflops('qwen3-8b', 'megatron', 4096) / gigaflops('llama3-8b', 'megatron', 8192):.3f}")),
]  # fmt: skip


@pytest.mark.parametrize(("page", "sentence", "numbers"), CLAIMS, ids=[f"{page}: {text[:40]}" for page, text, _ in CLAIMS])
def test_a_claim(page: str, sentence: str, numbers: tuple[Callable[[], str], ...]) -> None:
    assert sentence.format(*(number() for number in numbers)) in (ROOT / page).read_text()


def test_more_than_64_bits() -> None:
    assert compile_plan(load_recipe("llama3.1-405b"), "exact").flops([2**17] * 128) > 2**63
