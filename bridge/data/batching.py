"""Turns samples into micro-batches: dictionaries of CPU tensors with megatron-core's names.

=================  ==========================  =========================================================================
key                shape, type                 meaning
=================  ==========================  =========================================================================
tokens             [b, s] int64                inputs
labels             [b, s] int64                the same, one token later
loss_mask          [b, s] float32              1 where the label is learned, 0 on padding and in prompts
padding_mask       [b, s] bool                 True on padding
position_ids       [b, s] int64                from 0 in every document
attention_mask     [b, s] bool, or None        padded batches: True on real tokens; else None (causal only)
cu_seqlens         [n + 1] int32               packed batches: offsets of the documents, without padding
cu_seqlens_padded  [n + 1] int32               packed batches with padding: their offsets in ``tokens``
max_seqlen         [] int32                    packed batches: length of the longest document with padding
=================  ==========================  =========================================================================

Padding is always on the right, so with causal attention a real token never attends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.data.samples import Segment

MicroBatch = dict[str, Any]
Collate = Callable[[Sequence[list[Segment]]], MicroBatch]


def collate_rows(samples: Sequence[list[Segment]], *, multiple_of: int, masked: bool) -> MicroBatch:
    """One sample per row, padded on the right to the longest one, rounded up to ``multiple_of`` tokens.

    ``masked``: whether to add the attention mask (not needed if all samples have the same length).
    """
    segments = [segment for (segment,) in samples]
    lengths = np.asarray([len(inputs) for inputs, *_ in segments])
    width = _round_up(int(lengths.max()), multiple_of)
    tokens, labels = _blank(len(segments), width), _blank(len(segments), width)
    loss_mask = np.zeros((len(segments), width), dtype=np.float32)
    for row, (inputs, following, *learned) in enumerate(segments):
        tokens[row, : len(inputs)] = inputs
        labels[row, : len(inputs)] = following
        loss_mask[row, : len(inputs)] = learned[0] if learned else 1
    real = np.arange(width) < lengths[:, None]
    return {
        "tokens": torch.from_numpy(tokens),
        "labels": torch.from_numpy(labels),
        "loss_mask": torch.from_numpy(loss_mask),
        "padding_mask": torch.from_numpy(~real),
        "position_ids": torch.arange(width).expand(len(segments), width).contiguous(),
        "attention_mask": torch.from_numpy(real) if masked else None,
    }


def collate_packed(samples: Sequence[list[Segment]], *, multiple_of: int, segment_multiple_of: int) -> MicroBatch:
    """All segments of all samples concatenated in one row (THD layout), so b = 1 for any micro-batch size.

    ``segment_multiple_of``: each segment is padded to a multiple of this (context parallelism splits each one);
    ``multiple_of``: the row is padded to a multiple of this after its last segment (sequence parallelism splits the row).
    """
    segments = [segment for sample in samples for segment in sample]
    lengths = np.asarray([len(inputs) for inputs, *_ in segments], dtype=np.int64)
    slots = -(-lengths // segment_multiple_of) * segment_multiple_of
    width = _round_up(int(slots.sum()), multiple_of)
    slots[-1] += width - int(slots.sum())
    tokens, labels = _blank(1, width), _blank(1, width)
    loss_mask = np.zeros((1, width), dtype=np.float32)
    padding_mask = np.ones((1, width), dtype=np.bool_)
    position_ids = np.empty((1, width), dtype=np.int64)
    bounds = _cumulative(slots)
    for (inputs, following, *learned), start, length, slot in zip(segments, bounds[:-1], lengths, slots, strict=True):
        tokens[0, start : start + length] = inputs
        labels[0, start : start + length] = following
        loss_mask[0, start : start + length] = learned[0] if learned else 1
        padding_mask[0, start : start + length] = False
        position_ids[0, start : start + slot] = np.arange(slot)
    batch: MicroBatch = {
        "tokens": torch.from_numpy(tokens),
        "labels": torch.from_numpy(labels),
        "loss_mask": torch.from_numpy(loss_mask),
        "padding_mask": torch.from_numpy(padding_mask),
        "position_ids": torch.from_numpy(position_ids),
        "attention_mask": None,
        "cu_seqlens": torch.from_numpy(_cumulative(lengths)),
        "max_seqlen": torch.tensor(int(slots.max()), dtype=torch.int32),
    }
    if width > int(lengths.sum()):
        batch["cu_seqlens_padded"] = torch.from_numpy(bounds)
    return batch


def build_collate(
    batching: str,
    *,
    tensor_parallel_sequence: int = 1,
    context_parallel_size: int = 1,
    alignment: int = 1,
) -> Collate:
    """Return the function that makes micro-batches for a kind of batching and a parallel layout.

    Args:
        batching: ``padded``, ``packed`` or ``fixed``.
        tensor_parallel_sequence: ranks that share the sequence under sequence parallelism, else 1.
        context_parallel_size: ranks that share the sequence under context parallelism; each takes two chunks of
            every sequence, one from the front and one from the back, to balance the causal work.
        alignment: tokens per rank are a multiple of this (16 for FP8 matmuls).
    """
    chunks = 2 * context_parallel_size if context_parallel_size > 1 else 1
    whole = int(np.lcm(chunks, context_parallel_size * tensor_parallel_sequence * alignment))
    if batching == "packed":
        return partial(collate_packed, multiple_of=whole, segment_multiple_of=chunks)
    return partial(collate_rows, multiple_of=whole, masked=batching == "padded")


def _blank(rows: int, width: int) -> NDArray[np.int64]:
    return np.zeros((rows, width), dtype=np.int64)


def _cumulative(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
