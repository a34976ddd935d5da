"""Prefill and single decode steps equal what torch counts while transformers generates with its KV cache: no tolerance."""

from __future__ import annotations

from random import Random

import pytest
import torch

pytest.importorskip("transformers")
from transformers import DynamicCache, PreTrainedConfig

from bridge.config import from_huggingface
from bridge.planning.inference import InferencePlan, prefill_and_decode
from oracle import transformers_models as oracle
from oracle.counter import count

FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gemma", "gemma2",
    "gemma3_text", "gpt_oss", "phi3", "olmo2", "olmo3", "olmoe", "glm4_moe",
)  # fmt: skip


def finished_mask(config: PreTrainedConfig, batch_size: int, queries: int, keys: int) -> object:
    """A mask for every kind of layer; layers with a window have no more keys than it in a decode step."""
    window = getattr(config, "sliding_window", None)

    def mask(kind: str) -> torch.Tensor:
        local = window and queries < keys and kind == "sliding_attention"
        return torch.zeros(batch_size, 1, queries, min(keys, window) if local else keys, device="meta")

    kinds = getattr(config, "layer_types", None)
    if kinds:
        return {kind: mask(kind) for kind in set(kinds)}
    return mask("sliding_attention" if window else "full_attention")


@pytest.mark.all(but=["*-0"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_prefill_and_decode_steps(model_type: str, seed: int) -> None:
    random = Random(f"{model_type} {seed}")
    config = oracle.draw(model_type, seed)
    model, cache = oracle.build(config), DynamicCache(config=config)
    batch_size, prompt, generated = random.randint(1, 3), random.randint(2, 20), 5

    def run(queries: int, keys: int) -> None:
        with torch.device("meta"):
            tokens = torch.zeros(batch_size, queries, dtype=torch.long)
            positions = torch.arange(keys - queries, keys)[None]
        mask = finished_mask(config, batch_size, queries, keys)
        model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)

    found = prefill_and_decode(from_huggingface(config), prompt, generated, batch_size=batch_size, convention="executed")
    assert found.prefill == count(lambda: run(prompt, prompt))
    for number, flops in enumerate(found.steps, 1):
        assert flops == count(lambda keys=prompt + number: run(1, keys)), number
    assert len(found.steps) == generated - 1
    if not cache.is_sliding or not any(cache.is_sliding):  # transformers' windows keep one token less between two steps
        held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
        assert found.cache_bytes == 2 * held


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma3_text", "deepseek_v3"])
def test_without_a_cache_and_with_the_last_logits_only(model_type: str) -> None:
    config = oracle.draw(model_type, 3)
    model = oracle.build(config)
    plan = InferencePlan(from_huggingface(config), "executed")
    found = prefill_and_decode(from_huggingface(config), 4, 3, kv_cache=False, convention="executed")
    assert [found.prefill, *found.steps] == [oracle.forward(model, 1, length) for length in (4, 5, 6)]

    def last(length: int, keep: int) -> None:
        with torch.device("meta"):
            tokens = torch.zeros(1, length, dtype=torch.long)
        model(
            input_ids=tokens,
            attention_mask=torch.zeros(1, 1, length, length, device="meta"),
            logits_to_keep=keep,
            use_cache=False,
        )

    for keep in (1, 3):
        assert plan.prefill(9, logits_to_keep=keep) == count(lambda keep=keep: last(9, keep))
