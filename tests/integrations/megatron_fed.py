"""What the Megatron loops are fed: known to the ranks and to the test that adds it up."""

from __future__ import annotations

import random

MODEL = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 48,
    "gated_linear_unit": True,
    "vocab_size": 64,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 24,
}
STEPS, MICRO_BATCHES, ROWS, EVALUATED = 5, 4, 2, 3


def lengths(replica: int) -> list[list[int]]:
    """Tokens in the rows of every training micro-batch of a replica."""
    numbers = random.Random(replica)
    return [[numbers.randint(1, MODEL["seq_length"]) for _ in range(ROWS)] for _ in range(STEPS * MICRO_BATCHES)]
