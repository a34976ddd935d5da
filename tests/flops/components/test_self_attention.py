"""Self attention beside transformers' own, one layer for each thing that models do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor, nn
from transformers import (
    Gemma4TextConfig,
    GptOssConfig,
    LlamaConfig,
    MiMoV2FlashConfig,
    Olmo2Config,
    Qwen3NextConfig,
    WhisperConfig,
)
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mimo_v2_flash.modeling_mimo_v2_flash import MiMoV2FlashAttention
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention
from transformers.models.whisper.modeling_whisper import WhisperAttention

from bridge.flops.components.self_attention import self_attention
from bridge.flops.elementwise import ROPE
from bridge.flops.reading import read
from bridge.flops.terms import CAUSAL, Kind
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, executed, in_layer, plan_of, priced, turns

#: Width 12, four heads of 6, two key heads.
FIELDS: dict[str, Any] = {"num_query_groups": 2, "kv_channels": 6}
SIZES: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
EAGER: dict[str, Any] = {"attn_implementation": "eager", "num_hidden_layers": 1}
TOKENS = 7


def called(module: nn.Module, size: int = 6, **options: Any) -> Callable[[], Tensor]:
    states = torch.zeros(1, TOKENS, 12)
    return lambda: module(states, position_embeddings=turns(TOKENS, size), attention_mask=None, **options)[0]


def llama(bias: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    module = LlamaAttention(LlamaConfig(**SIZES, **EAGER, attention_bias=bias), 0)
    return module, called(module)


def olmo2() -> tuple[nn.Module, Callable[[], Tensor]]:
    module = Olmo2Attention(Olmo2Config(**SIZES, **EAGER), 0)
    return module, called(module)


def qwen3_next() -> tuple[nn.Module, Callable[[], Tensor]]:
    module = Qwen3NextAttention(Qwen3NextConfig(**SIZES, **EAGER, layer_types=["full_attention"]), 0)
    return module, called(module)


def gpt_oss() -> tuple[nn.Module, Callable[[], Tensor]]:
    config = GptOssConfig(**SIZES, **EAGER, attention_bias=True, layer_types=["full_attention"])
    module = GptOssAttention(config, 0)
    return module, called(module, 3)


def mimo(kind: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """In a layer with a window twice the key heads and sinks."""
    groups = 1 if kind == "sliding_attention" else 2
    config = MiMoV2FlashConfig(**SIZES | {"num_key_value_heads": groups}, **EAGER, v_head_dim=5, layer_types=[kind])
    module = MiMoV2FlashAttention(config, 0)
    return module, called(module)


def whisper() -> tuple[nn.Module, Callable[[], Tensor]]:
    config = WhisperConfig(d_model=12, attn_implementation="eager")
    module = WhisperAttention(12, 4, layer_idx=0, config=config)
    return module, lambda: module(torch.zeros(1, TOKENS, 12))[0]


LAYERS = {
    "grouped": (lambda: llama(False), FIELDS),
    "biases": (lambda: llama(True), FIELDS | {"add_qkv_bias": True, "add_proj_bias": True}),
    "biases everywhere": (lambda: llama(True), FIELDS | {"add_bias_linear": True}),
    "norms over projections": (olmo2, FIELDS | {"qk_layernorm": "full"}),
    "gate and norms over heads": (qwen3_next, FIELDS | {"qk_layernorm": True, "attention_output_gate": True}),
    "sinks": (gpt_oss, FIELDS | {"softmax_type": "learnable", "add_qkv_bias": True, "add_proj_bias": True}),
    "narrow values": (lambda: mimo("full_attention"), FIELDS | {"v_channels": 5, "softmax_type": "learnable_local"}),
    "sinks where there is a window": (
        lambda: mimo("sliding_attention"),
        FIELDS | {"v_channels": 5, "softmax_type": "learnable_local", "window_size": 3},
    ),
    "no bias on keys": (whisper, {"add_bias_linear": True, "add_key_bias": False}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_transformers(name):
    build, fields = LAYERS[name]
    module, run = build()
    found = executed(module, run)
    assert priced(in_layer(fields), sequence_lengths=[TOKENS]) == found
    # One matmul for q, k and v is the same work.
    assert priced(in_layer(fields, framework="transformers_fused"), sequence_lengths=[TOKENS]) == found


@pytest.mark.parametrize("layer", range(6))
@pytest.mark.parametrize("shared", [0, 2])
def test_gemma_4(layer, shared):
    """Global layers have one head, 10 wide, whose keys are values; the last may take both from an earlier layer."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = Gemma4TextConfig(
        **SIZES | {"num_hidden_layers": 6}, attn_implementation="eager", layer_types=kinds, sliding_window=3, global_head_dim=10,
        num_global_key_value_heads=1, attention_k_eq_v=True, num_kv_shared_layers=shared,
    )  # fmt: skip
    module, size = Gemma4TextAttention(config, layer), 10 if layer % 3 == 2 else 6
    groups = 1 if layer % 3 == 2 else 2
    kept = {kinds[layer]: (torch.zeros(1, groups, TOKENS, size), torch.zeros(1, groups, TOKENS, size))}
    fields = FIELDS | {
        "num_layers": 6, "window_size": 3, "interleaved_attn_pattern": [2, 1], "global_kv_channels": 10,
        "global_num_query_groups": 1, "global_attention_k_eq_v": True, "qk_layernorm": True, "num_kv_shared_layers": shared,
    }  # fmt: skip
    run = called(module, size, shared_kv_states=kept)
    assert priced(in_layer(fields, layer=layer), sequence_lengths=[TOKENS]) == executed(module, run)


def test_megatron_core_names_its_parts():
    (fused, *_) = in_layer(FIELDS | {"attention_output_gate": True}, framework="megatron")
    assert (fused.path, fused.parts) == (
        "self_attention.linear_qkv", (("linear_q", 48), ("linear_k", 12), ("linear_v", 12)),
    )  # fmt: skip
    assert [term.path for term in in_layer(FIELDS) if term.has_weight] == [
        f"self_attention.linear_{part}" for part in ("q", "k", "v", "proj")
    ]


def test_a_narrower_output():
    """What it writes goes by another name, with a bias of its own width."""
    *_, last = in_layer(FIELDS | {"attention_output_size": 8, "num_moe_experts": 2, "add_proj_bias": True})
    assert (last.k, last.n, last.outputs, last.bias) == (24, 8, ("narrow",), 8)


def test_what_is_not_a_matmul():
    """Channels that RoPE turns, additions of T5's biases to every pair of each head, the gate on every number."""
    terms = self_attention(
        hidden_size=12, num_attention_heads=4, num_query_groups=2, kv_channels=6, context=CAUSAL, rotated=4, position_bias=True,
        output_gate=True,
    )  # fmt: skip
    done = {term.name: term.operations for term in terms if term.kind is Kind.ELEMENTWISE}
    assert done["rope_query"] == 4 * 4 * ROPE
    assert done["rope_key"] == 2 * 4 * ROPE
    assert (done["position_bias"].additions, done["output_gate"].multiplications) == (4, 24)
    plain = self_attention(hidden_size=12, num_attention_heads=4, num_query_groups=2, kv_channels=6, context=CAUSAL)
    assert done.keys() - {term.name for term in plain} == {"rope_query", "rope_key", "position_bias", "output_gate"}


@pytest.mark.parametrize(
    ("fields", "turned"),
    [({}, 6), ({"rotary_percent": 0.5}, 3), ({"position_embedding_type": "none"}, 0), ({"no_rope_freq": 1}, 0)],
)
def test_how_much_of_a_head_is_turned(fields, turned):
    found = sum(term.operations.additions for term in in_layer(FIELDS | fields) if term.name.startswith("rope"))
    assert found == turned * (4 + 2)


def test_norms_of_heads_may_have_a_bias():
    rms, layer = (
        plan_of(in_layer(FIELDS | {"qk_layernorm": True, "normalization": name})).parameters()["total"]
        for name in ("RMSNorm", "LayerNorm")
    )
    assert layer - rms == 2 * 6


def test_keys_and_values_are_kept_apart_and_once():
    """Shared projections still give both; layers that share them keep none of their own."""
    fields = FIELDS | {
        "num_layers": 3, "window_size": 3, "window_attn_skip_freq": [1, 1, 0], "global_kv_channels": 10,
        "global_num_query_groups": 1, "global_attention_k_eq_v": True, "num_kv_shared_layers": 1, "v_channels": 5,
    }  # fmt: skip
    kept = [(cache.entries, cache.kept.shape, cache.owned) for (cache,) in layer_caches(read(SMALL | fields).shape)]
    assert kept == [(2 * (6 + 5), "window", True), (2 * (6 + 5), "window", True), (10 + 5, "causal", False)]
