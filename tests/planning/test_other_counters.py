"""Other frameworks' formulas, worked out by hand for Llama 3 8B and, with windows, for GPT-OSS 20B."""

from __future__ import annotations

from fractions import Fraction

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
        ("verl since 0.7.1", 6 * (LINEAR + EMBEDDING) + 6 * LAYERS * CHANNELS * TOKENS),
        ("verl until 0.7.0", 6 * (LINEAR + EMBEDDING) + 12 * LAYERS * CHANNELS * TOKENS),
        ("torchtitan", 6 * (LINEAR + NORMS) + 12 * LAYERS * CHANNELS * TOKENS),
        ("llm-foundry", 6 * (LINEAR + EMBEDDING + NORMS) + 12 * LAYERS * CHANNELS * TOKENS),
        ("Transformers' Trainer", 6 * (LINEAR + NORMS)),
    ],
)
def test_llama(name, expected):
    assert BY_NAME[name].of(check("llama3-8b", sequence_length=TOKENS)).flops_per_token == expected


def test_windows():
    """verl and torchtitan count min(T, W) keys for each token of a layer with a window, today's verl half of them."""
    run = check("gpt-oss-20b", sequence_length=TOKENS)
    pairs = 12 * 64 * 64 * (12 * TOKENS + 12 * 128)
    for name, without, part in (
        ("verl until 0.7.0", ("embedding_counted",), 1),
        ("verl since 0.7.1", ("embedding_counted",), Fraction(1, 2)),
        ("torchtitan", (), 1),
    ):
        linear = run.under(BY_NAME[name].convention, "attention_left_out", *without)
        assert BY_NAME[name].of(run).flops_per_token - linear.flops_per_token == part * pairs


@pytest.mark.parametrize(
    ("name", "model", "per_token"),
    [  # what verl 0.9.1 and 0.7.0 print for one sequence of 8,192 tokens
        ("verl since 0.7.1", "llama3-8b", 54_622_420_992),
        ("verl since 0.7.1", "gemma3-4b", 28_175_106_048),
        ("verl since 0.7.1", "gpt-oss-20b", 27_571_322_880),
        ("verl since 0.7.1", "qwen3-30b-a3b", 29_780_606_976),
        ("verl since 0.7.1", "deepseek-v3", 286_712_266_752),
        ("verl until 0.7.0", "llama3-8b", 61_064_871_936),
        ("verl until 0.7.0", "gemma3-4b", 29_043_326_976),
        ("verl until 0.7.0", "gpt-oss-20b", 30_024_990_720),
        ("verl until 0.7.0", "qwen3-30b-a3b", 39_444_283_392),
    ],
)
def test_verl_itself(name, model, per_token):
    assert BY_NAME[name].of(check(model, sequence_length=TOKENS)).flops_per_token == per_token


def test_every_framework_has_a_line():
    assert BY_NAME.keys() == {
        "Megatron-LM", "MaxText", "NeMo Automodel", "Lightning", "verl since 0.7.1", "verl until 0.7.0", "torchtitan",
        "llm-foundry", "Transformers' Trainer",
    }  # fmt: skip
    assert not BY_NAME["NeMo Automodel"].knows(check("qwen3-30b-a3b"))
    assert not BY_NAME["verl until 0.7.0"].knows(check("deepseek-v3"))
