"""The ``exact`` convention counts the pairs that transformers' own attention masks let through."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from oracle import transformers_models as oracle

#: Every way to say which layers are local, and a few that have none.
FAMILIES = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "phi3",
    "olmo3",
    "deepseek_v3",
]


class Pairs:
    """Attention that computes nothing and adds up what its mask lets through: FLOPs of the unmasked pairs."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        batch, heads, length, width = query.shape
        pairs = int((mask == 0).sum()) * batch // mask.shape[0]
        self.flops += 2 * pairs * heads * (width + value.shape[-1])
        return query.new_zeros(batch, length, heads, value.shape[-1]), None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_pairs(model_type: str, seed: int) -> None:
    pairs = Pairs()
    AttentionInterface.register("pairs", pairs)
    AttentionMaskInterface.register("pairs", eager_mask)
    config = oracle.draw(model_type, seed)
    model = oracle.build(config, attention="pairs", device="cpu")
    model(torch.zeros(2, 23, dtype=torch.long), use_cache=False)
    plan = compile_plan(from_huggingface(config), convention="exact")
    assert plan.breakdown([23, 23], passes="forward")["core_attention"] == pairs.flops
