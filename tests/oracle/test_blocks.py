"""Blocks that differ from layer to layer, built of Llama's parts as the code beside the weights of Nemotron Super builds them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from oracle.counter import count

HIDDEN, HEADS = 48, 4


def draw(seed: int) -> dict[str, Any]:
    """A configuration as the published files have it: one entry a layer, the usual sizes null."""
    random = Random(f"blocks {seed}")

    def block(sizes: dict[str, Any]) -> dict[str, Any]:
        kind = random.choice(["usual", "usual", "no_op", "replace_with_linear"])
        return {**sizes, "no_op": kind == "no_op", "replace_with_linear": kind == "replace_with_linear", "sparsify": None}

    blocks = [
        {
            "attention": block({"n_heads_in_group": random.choice([1, 2, 4]), "window_length": None}),
            "ffn": block({"ffn_mult": random.choice([1.3125, 5.25, 20.0])}),
        }
        for _ in range(6)
    ]
    return {
        "model_type": "nemotron-nas", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": len(blocks),
        "block_configs": blocks, "num_key_value_heads": None, "intermediate_size": None, "vocab_size": 90,
        "attention_bias": random.random() < 0.5, "mlp_bias": random.random() < 0.5, "tie_word_embeddings": False,
    }  # fmt: skip


class Instead(nn.Module):
    """What stands in place of an attention: one matrix, or nothing."""

    def __init__(self, matrix: nn.Module | None) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        return (self.matrix(hidden_states) if self.matrix else torch.zeros_like(hidden_states)), None


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def build(file: dict[str, Any]) -> LlamaForCausalLM:
    sizes = {name: value for name, value in file.items() if value is not None and name not in ("model_type", "block_configs")}
    model = LlamaForCausalLM._from_config(LlamaConfig(**sizes, intermediate_size=8), attn_implementation="eager")
    for layer, block in zip(model.model.layers, file["block_configs"], strict=True):
        attention, mlp = block["attention"], block["ffn"]
        width = -(-int(2 * mlp["ffn_mult"] * HIDDEN / 3) // 256) * 256
        own = LlamaConfig(**sizes, num_key_value_heads=HEADS // attention["n_heads_in_group"], intermediate_size=width)
        own._attn_implementation = "eager"
        layer.self_attn, layer.mlp = LlamaAttention(own, 0), LlamaMLP(own)
        if attention["replace_with_linear"]:
            layer.self_attn = Instead(nn.Linear(HIDDEN, HIDDEN, bias=file["attention_bias"]))
        if mlp["replace_with_linear"]:
            layer.mlp = nn.Linear(HIDDEN, HIDDEN, bias=file["mlp_bias"])
        if attention["no_op"]:
            layer.input_layernorm, layer.self_attn = nn.Identity(), Instead(None)
        if mlp["no_op"]:
            layer.post_attention_layernorm, layer.mlp = nn.Identity(), Nothing()
    return model


@pytest.mark.parametrize("seed", range(4))
def test_blocks(seed: int) -> None:
    file = draw(seed)
    model, found = build(file), from_huggingface(file)
    plan = compile_plan(found, "executed")
    tokens = torch.zeros(2, 11, dtype=torch.long)
    assert found.not_counted == ()
    assert plan.flops([11, 11], passes="forward") == count(lambda: model(tokens, use_cache=False))
    assert plan.flops([11, 11]) == count(lambda: model(tokens, use_cache=False).logits.sum().backward())
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


def test_what_a_block_has_besides_is_named() -> None:
    file = draw(0)
    file["block_configs"][2]["attention"] |= {"window_length": 64, "num_sink_tokens": 4}
    sentence = "num_sink_tokens, window_length of its attention blocks is counted as if it were not there"
    assert [found.endswith(sentence) for found in from_huggingface(file).not_counted] == [True]
