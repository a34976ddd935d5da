"""PaLM's rule: 6 N + 12 L H Q T per token, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.flops import compile_plan
from bridge.flops.conventions import PALM
from bridge.flops.parameter_rule import Parameters

#: Width 4, MLP 8, vocabulary 10, two heads of 3, two layers.
SMALL = {"num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 2, "kv_channels": 3, "vocab_size": 10,
         "normalization": "RMSNorm"}  # fmt: skip
LAYER = 4 * 18 + 6 * 4 + 2 * 4 * 8 + 2 * 4  # qkv, proj, MLP, two norms
N = 2 * 10 * 4 + 2 * LAYER + 4
TOKENS = 7
SQUARE = 12 * 2 * 2 * 3 * TOKENS  # per token


def per_token(passes: str = "training", convention=PALM, **fields) -> float:
    return compile_plan(SMALL | fields, convention).flops([TOKENS], passes=passes) / TOKENS


def test_every_parameter_and_the_whole_square():
    assert compile_plan(SMALL).parameters()["total"] == N
    assert per_token() == 6 * N + SQUARE
    assert per_token("forward") == 2 * N + SQUARE / 3


def test_full_recomputation_is_a_third_more():
    again = {"recompute_granularity": "full", "recompute_method": "uniform"}
    assert per_token("hardware", **again) == 8 * N + SQUARE * 4 / 3
    assert per_token("hardware", recompute_granularity="selective") == 6 * N + SQUARE * 4 / 3
    assert per_token(**again) == 6 * N + SQUARE


def test_without_the_input_embedding():
    without = replace(PALM, parameters=Parameters.WITHOUT_EMBEDDING)
    assert per_token(convention=without) == 6 * (N - 10 * 4) + SQUARE
    tied = {"share_embeddings_and_output_weights": True}
    assert per_token(convention=without, **tied) == per_token(**tied) == 6 * (N - 10 * 4) + SQUARE
    deep = tied | {"mtp_num_layers": 1}
    assert per_token(convention=without, **deep) == per_token(**deep)
    learned = {"position_embedding_type": "learned_absolute", "max_position_embeddings": 7}
    assert per_token(**learned) == 6 * (N + 7 * 4) + SQUARE
    assert per_token(convention=without, **learned) == 6 * (N - 10 * 4) + SQUARE


def test_experts_that_a_token_uses():
    moe = {"num_moe_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 8}
    counts = compile_plan(SMALL | moe).parameters()
    assert counts["active"] == N + 2 * (2 * 4 * 8 + 4 * 8)  # one expert more, and the router
    assert per_token(**moe) == 6 * counts["active"] + SQUARE


@pytest.mark.parametrize("fields", [{"window_size": 3}, {"attention_chunk_size": 4}])
def test_windows_are_ignored(fields):
    assert per_token(**fields) == 6 * N + SQUARE


def test_frozen_weights_count_as_if_they_trained():
    frozen = {"model": SMALL, "peft": {"kind": "lora", "dim": 1, "target_modules": ["linear_proj"]}}
    adapters = 2 * (6 + 4)
    assert compile_plan(frozen, "palm").flops([TOKENS]) / TOKENS == 6 * (N + adapters) + SQUARE


def test_models_that_look_on_run_forward():
    reference = {"model": SMALL, "reference_model": True}
    assert compile_plan(reference, "palm").flops([TOKENS]) / TOKENS == 8 * N + SQUARE * 4 / 3
