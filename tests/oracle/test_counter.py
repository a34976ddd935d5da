"""The operations given to kernels that torch's counter does not know: the same as those of the kernels it knows."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from oracle.counter import count

CONFIG = Qwen3MoeConfig(
    vocab_size=160, hidden_size=64, intermediate_size=96, moe_intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, pad_token_id=0,
)  # fmt: skip


def training(attention: str, experts: str) -> int:
    CONFIG._experts_implementation = experts
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation=attention)
    tokens = torch.zeros(2, 12, dtype=torch.long)
    return count(lambda: model(tokens, use_cache=False).logits.sum().backward())


@pytest.mark.parametrize(("attention", "experts"), [("sdpa", "batched_mm"), ("eager", "grouped_mm"), ("sdpa", "grouped_mm")])
def test_fused_kernels_count_as_unfused_ones(attention: str, experts: str) -> None:
    assert training(attention, experts) == training("eager", "batched_mm")


def test_what_torch_counts_wrongly() -> None:
    """The gradients of a depthwise convolution: each costs what the convolution costs."""
    batch, channels, length, taps = 2, 6, 9, 4
    layer = torch.nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
    x = torch.zeros(batch, channels, length, requires_grad=True)
    forward = 2 * batch * channels * (length + taps - 1) * taps
    assert count(lambda: layer(x)) == forward
    assert count(lambda: layer(x).sum().backward()) == 3 * forward
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() != 3 * forward, "torch counts this rightly now: drop our formula"
