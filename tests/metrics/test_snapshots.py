"""What is kept of a micro-batch and read later counts as the micro-batch read at once, whatever it is."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.flops import compile_plan
from bridge.metrics.batch_lengths import NoLengths, read_lengths
from bridge.metrics.batch_statistics import BatchStatistics
from bridge.metrics.meter import Meter
from bridge.metrics.vector import VectorLayout

MODEL = {
    "num_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "ffn_hidden_size": 8,
    "vocab_size": 8,
    "window_size": (3, 0),
    "window_attn_skip_freq": 2,
}
PLAN = compile_plan(MODEL, "exact")

WIDTH = st.integers(1, 9)
DTYPES = st.sampled_from([torch.int32, torch.int64, torch.float32])
OFFSETS = st.one_of(
    st.lists(st.integers(0, 4), max_size=6).map(lambda lengths: np.cumsum([0, *lengths]).tolist()),  # of sequences
    st.lists(st.integers(-1, 12), min_size=1, max_size=6),  # of anything
)


@st.composite
def offsets(draw):
    rows = [draw(OFFSETS) for _ in range(draw(st.integers(1, 2)))]
    filler = draw(st.sampled_from([-1, 0]))
    longest = max(map(len, rows)) + draw(st.integers(0, 2))
    padded = [[*row, *[filler] * (longest - len(row))] for row in rows]
    values = torch.tensor(padded if len(rows) > 1 or draw(st.booleans()) else padded[0], dtype=draw(DTYPES))
    if draw(st.integers(0, 19)) == 0:
        values = values.reshape(-1)[0].clone()
    return values.numpy() if draw(st.booleans()) else values


@st.composite
def batches(draw):
    rows, width = draw(st.integers(1, 3)), draw(WIDTH)
    shape = draw(st.sampled_from([(rows, width), (1, width), (width,), (rows, width, 2)]))
    tokens = torch.zeros(shape, dtype=draw(DTYPES))
    batch = {draw(st.sampled_from(["tokens", "input_ids"])): tokens.numpy() if draw(st.booleans()) else tokens}
    more = {
        "labels": lambda: tokens,
        "loss_mask": lambda: None,
        "attention_mask": lambda: torch.randint(0, 2, shape[:2], generator=torch.Generator().manual_seed(width)),
        "position_ids": lambda: torch.arange(width).expand(shape[:2]) if len(shape) == 2 else None,
        "cu_seqlens": lambda: draw(offsets()),
        "cu_seqlens_unpadded": lambda: draw(offsets()),
        "cu_seqlens_argmin": lambda: torch.tensor(draw(st.integers(0, 5))),
        "packed_seq_params": lambda: None,
    }
    for name in draw(st.lists(st.sampled_from(sorted(more)), max_size=4, unique=True)):
        batch[name] = draw(st.sampled_from([more[name](), None]))
    return batch


def read_at_once(drawn) -> list[int]:
    sums = BatchStatistics(VectorLayout(PLAN.statistics))
    for batch in drawn:
        try:
            sums.add(read_lengths(batch, images=False))
        except NoLengths:
            sums.count("unread_micro_batches")
    return sums.drain()[0]


@settings(max_examples=400, deadline=None)
@given(st.lists(batches(), max_size=6), st.integers(0, 6))
def test_a_meter_counts_as_if_each_micro_batch_were_read_at_once(drawn, kept_at_first):
    expected = read_at_once(drawn)
    meter = Meter(PLAN)
    for number, batch in enumerate(drawn):
        if number == kept_at_first:
            meter._batch.reduce()
        meter.add_batch(batch)
        for value in batch.values():  # the loop's own, from here on
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif isinstance(value, np.ndarray):
                value.fill(0)
        batch.clear()
    assert not meter._failed
    counted = meter._batch.drain()[0][: len(expected)]
    assert dict(zip(meter.layout.names, counted, strict=False)) == dict(zip(meter.layout.names, expected, strict=False))


# Mutants that nothing tells apart: ``Packed.plain`` that declines more often, since what it declines is read one by one.
