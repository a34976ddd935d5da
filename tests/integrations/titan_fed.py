"""What torchtitan is fed: known to the ranks and to the test that adds it up."""

from __future__ import annotations

import random

#: Its ``debugmodel``.
MODEL = {
    "num_layers": 6,
    "hidden_size": 256,
    "num_attention_heads": 16,
    "ffn_hidden_size": 768,
    "gated_linear_unit": True,
    "vocab_size": 2048,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 32,
}
ROWS, ACCUMULATED = 2, 2


def documents(replica: int, micro_batch: int) -> list[list[int]]:
    """Lengths of the documents in each row of a micro-batch; they fill it."""
    numbers, rows = random.Random(1000 * replica + micro_batch), []
    for _ in range(ROWS):
        row: list[int] = []
        while (left := MODEL["seq_length"] - sum(row)) > 0:
            row.append(min(left, numbers.randint(1, 20)))
        rows.append(row)
    return rows
