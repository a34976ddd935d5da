"""Micro-batches: shapes, masks and bounds, for every kind of batching and every way a sequence is shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.batching import build_collate
from bridge.data.samples import Segment
from bridge.metrics.batch_lengths import read_lengths


def segment(length: int, first: int = 1) -> Segment:
    tokens = np.arange(first, first + length + 1) % 251
    return tokens[:-1], tokens[1:]


def test_padded_rows_are_as_long_as_the_longest_document() -> None:
    batch = build_collate("padded")([[segment(3)], [segment(5, 7)]])
    assert batch["tokens"].tolist() == [[1, 2, 3, 0, 0], [7, 8, 9, 10, 11]]
    assert batch["labels"].tolist() == [[2, 3, 4, 0, 0], [8, 9, 10, 11, 12]]
    assert batch["loss_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch["position_ids"].tolist() == [list(range(5))] * 2
    assert batch["tokens"].dtype == torch.int64


def test_packed_documents_lie_back_to_back_in_one_row() -> None:
    batch = build_collate("packed")([[segment(3), segment(2, 9)], [segment(4, 20)]])
    assert batch["tokens"].tolist() == [[1, 2, 3, 9, 10, 20, 21, 22, 23]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 9]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert int(batch["max_seqlen"]) == 4
    assert "cu_seqlens_padded" not in batch
    assert batch["attention_mask"] is None


def test_packed_documents_are_padded_one_by_one_for_context_parallelism() -> None:
    batch = build_collate("packed", context_parallel_size=2)([[segment(3), segment(6, 9)]])
    assert batch["tokens"].tolist() == [[1, 2, 3, 0, 9, 10, 11, 12, 13, 14, 0, 0]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 9]
    assert batch["cu_seqlens_padded"].tolist() == [0, 4, 12]
    assert batch["loss_mask"].tolist() == [[1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0]]
    assert int(batch["max_seqlen"]) == 8


@pytest.mark.parametrize("batching", ["padded", "packed"])
@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    tensor=st.sampled_from([1, 2, 4]),
    context=st.sampled_from([1, 2, 4]),
    alignment=st.sampled_from([1, 16]),
)
def test_every_rank_gets_whole_tokens_and_no_real_token_is_lost(
    batching: str, lengths: list[int], tensor: int, context: int, alignment: int
) -> None:
    collate = build_collate(batching, tensor_parallel_sequence=tensor, context_parallel_size=context, alignment=alignment)
    batch = collate([[segment(length, i)] for i, length in enumerate(lengths)])
    width = batch["tokens"].shape[1]
    assert width % (context * tensor * alignment) == 0
    assert context == 1 or width % (2 * context) == 0
    assert int(batch["loss_mask"].sum()) == sum(lengths)
    assert read_lengths(batch).sequences.tolist() == lengths  # type: ignore[union-attr]
    real = batch["loss_mask"].bool()
    expected = torch.cat([torch.from_numpy(segment(length, i)[0]) for i, length in enumerate(lengths)])
    assert torch.equal(batch["tokens"][real], expected)
    if "cu_seqlens_padded" in batch:
        bounds = batch["cu_seqlens_padded"]
        assert int(bounds[-1]) == width
        assert context == 1 or bool((torch.diff(bounds) % (2 * context) == 0).all())
