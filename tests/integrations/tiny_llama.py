"""A small model of transformers, made from a configuration, and texts of very different length."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG))


def texts(count: int, seed: int = 0, *, pairs: bool = False) -> list[dict[str, list[int]]]:
    """Token numbers of ``count`` texts; with ``pairs`` two neighbors are equally long."""
    numbers = random.Random(seed)
    lengths = [numbers.randint(1, 30) for _ in range(count)]
    if pairs:
        lengths = [lengths[number // 2] for number in range(count)]
    return [{"input_ids": [numbers.randrange(97) for _ in range(length)]} for length in lengths]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded to the longest row."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    tokens[mask] = torch.tensor([token for row in rows for token in row["input_ids"]])
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": tokens.masked_fill(~mask, -100)}


def lengths(batch: Any) -> list[int]:
    """Real tokens of each row."""
    return batch["attention_mask"].sum(-1).tolist()
