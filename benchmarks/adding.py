"""Microseconds to add a micro-batch: its lengths read and all statistics summed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.rows import Row, microseconds
from bridge.flops import compile_plan
from bridge.metrics.meter import Meter

MODEL: dict[str, Any] = {
    "num_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "ffn_hidden_size": 14336,
    "vocab_size": 128256,
    "seq_length": 8192,
}
MODELS = {"dense": MODEL, "sliding window": {**MODEL, "window_size": (127, 0), "window_attn_skip_freq": 2}}
TARGET_US = 10.0


def packed(segments: int) -> dict[str, Any]:
    """A packed micro-batch of so many documents."""
    lengths = np.random.default_rng(segments).integers(1, 200, segments)
    offsets = torch.tensor([0, *lengths.tolist()]).cumsum(0).int()
    return {"tokens": torch.zeros(1, int(lengths.sum())), "cu_seqlens": offsets, "attention_mask": None}


def forms() -> dict[str, dict[str, Any]]:
    """Micro-batches by name."""
    tokens = torch.zeros(4, 512)
    return {
        **{f"packed, {segments} segment(s)": packed(segments) for segments in (1, 64, 1024)},
        "padded, 4 x 512": {"tokens": tokens, "attention_mask": torch.ones(4, 512, dtype=torch.bool)},
        "fixed, 4 x 512": {"tokens": tokens, "attention_mask": None},
    }


def rows() -> Iterator[Row]:
    for kind, model in MODELS.items():
        for form, batch in forms().items():
            meter = Meter(compile_plan(model, convention="exact"))
            meter.add_batch(batch)
            yield Row(f"{form}, {kind}", microseconds(lambda: meter.add_batch(batch)), "us", TARGET_US)  # noqa: B023
