"""Other frameworks' formulas, worked out by hand for Llama 3 8B and, with windows, for GPT-OSS 20B."""

from __future__ import annotations

import pytest

from bridge.planning.check import check
from bridge.planning.other_counters import COUNTERS

BY_NAME = {counter.name.split(",")[0]: counter for counter in COUNTERS}
TOKENS = 8192
#: Llama 3 8B: weights of a layer, layers, embedding, pairs of channels.
LAYER, LAYERS, EMBEDDING, CHANNELS = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336, 32, 128256 * 4096, 32 * 128
LINEAR = LAYERS * LAYER + EMBEDDING
NORMS = (2 * LAYERS + 1) * 4096


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Megatron-LM", 6 * LINEAR + 6 * LAYERS * CHANNELS * TOKENS),
        ("MaxText", 6 * LINEAR + 6 * LAYERS * CHANNELS * TOKENS),
        ("NeMo Automodel", 6 * LINEAR + 6 * LAYERS * CHANNELS * TOKENS),
        ("Lightning", 6 * LINEAR + 12 * LAYERS * CHANNELS * TOKENS),
        ("verl", 6 * (LINEAR + EMBEDDING) + 12 * LAYERS * CHANNELS * TOKENS),
        ("torchtitan", 6 * (LINEAR + NORMS) + 12 * LAYERS * CHANNELS * TOKENS),
        ("llm-foundry", 6 * (LINEAR + EMBEDDING + NORMS) + 12 * LAYERS * CHANNELS * TOKENS),
        ("Transformers' Trainer", 6 * (LINEAR + NORMS)),
    ],
)
def test_llama(name, expected):
    assert BY_NAME[name].of(check("llama3-8b", sequence_length=TOKENS)).flops_per_token == expected


def test_windows():
    """verl and torchtitan count min(T, W) keys for each token of a layer with a window."""
    run = check("gpt-oss-20b", sequence_length=TOKENS)
    pairs = 12 * 64 * 64 * (12 * TOKENS + 12 * 128)
    for name, without in (("verl", "embedding_counted"), ("torchtitan", "")):
        linear = run.under(BY_NAME[name].convention, "attention_left_out", *([without] if without else []))
        assert BY_NAME[name].of(run).flops_per_token - linear.flops_per_token == pairs


def test_every_framework_has_a_line():
    assert BY_NAME.keys() == {
        "Megatron-LM", "MaxText", "NeMo Automodel", "Lightning", "verl", "torchtitan", "llm-foundry", "Transformers' Trainer",
    }  # fmt: skip
    assert not BY_NAME["NeMo Automodel"].knows(check("qwen3-30b-a3b"))
