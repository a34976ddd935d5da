"""Latent attention beside DeepSeek-V3's, and on the latents themselves."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from bridge.flops.components.latent_attention import latent_attention
from bridge.flops.elementwise import ROPE
from bridge.flops.reading import read
from bridge.flops.terms import CAUSAL, Kind, Role
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, executed, in_layer, plan_of, priced, turns

RANKS = {"q_lora_rank": 7, "kv_lora_rank": 9, "qk_head_dim": 5, "qk_pos_emb_head_dim": 4, "v_head_dim": 3}
SIZES: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 4, "context": CAUSAL} | RANKS


def attention(rank: int | None, bias: bool) -> DeepseekV3Attention:
    config = DeepseekV3Config(
        hidden_size=12, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=rank, kv_lora_rank=9, qk_nope_head_dim=5,
        qk_rope_head_dim=4, v_head_dim=3, attention_bias=bias, attn_implementation="eager",
    )  # fmt: skip
    return DeepseekV3Attention(config, 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [None, 7])
def test_deepseek_v3(rank, bias):
    module = attention(rank, bias)
    terms = latent_attention(**SIZES | {"q_lora_rank": rank}, proj_bias=bias, down_bias=bias)
    run = executed(module, lambda: module(torch.zeros(2, 7, 12), turns(7, 4), None)[0])
    assert priced(terms, sequence_lengths=[7, 7]) == run
    if not bias:
        assert priced(in_layer(RANKS | {"multi_latent_attention": True, "q_lora_rank": rank}), sequence_lengths=[7, 7]) == run


def test_the_bias_of_a_model_is_on_the_way_out_alone():
    plain, biased = (in_layer(RANKS | {"multi_latent_attention": True, "add_bias_linear": bias}) for bias in (False, True))
    assert plan_of(biased).parameters()["total"] - plan_of(plain).parameters()["total"] == 12


def test_heads_on_the_latents():
    """A key is the latent beside its RoPE part, 9 + 4 wide, a value the latent; one of each for all heads."""
    query, key, value = torch.ones(4, 7, 13), torch.ones(7, 13), torch.ones(7, 9)

    def run() -> Tensor:
        return torch.softmax(query @ key.T, -1) @ value

    cores = [term for term in latent_attention(**SIZES, absorbed=True) if term.kind is Kind.CORE]
    assert plan_of(cores).flops([7], passes="forward") == count(run)
    linear, absorbed = (
        plan_of([term for term in latent_attention(**SIZES, absorbed=on) if term.kind is not Kind.CORE]) for on in (False, True)
    )
    assert linear.flops([7]) == absorbed.flops([7])


def test_roles():
    found = {role: [term.name for term in latent_attention(**SIZES) if role in term.roles] for role in Role}
    assert {role: names for role, names in found.items() if names} == {
        Role.LATENT_PROJECTION: ["linear_q_up_proj", "linear_kv_up_proj"],
        Role.LATENT_UP: ["linear_kv_up_proj"],
        Role.LATENT_KEYS: ["query_key"],
        Role.LATENT_VALUES: ["scores_value"],
    }


def test_a_latent_and_a_key_part_are_kept():
    ((latents,),) = layer_caches(read(SMALL | RANKS | {"multi_latent_attention": True}).shape)
    assert (latents.name, latents.entries, latents.kept, latents.read) == ("latents", 9 + 4, CAUSAL, None)


def test_rope_turns_a_part_of_every_query_and_of_the_one_key():
    done = {term.name: term.operations for term in latent_attention(**SIZES) if term.name.startswith("rope")}
    assert done == {"rope_query": 16 * ROPE, "rope_key": 4 * ROPE}
