"""Packed files for the tests, and what is in them by plain arithmetic."""

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def pack(lengths, first_token=0):
    """A row of sequences with so many tokens each."""
    total = sum(lengths)
    return {
        "input_ids": [(first_token + 7919 * i) % 150000 for i in range(total)],
        "loss_mask": [i % 3 == 0 for i in range(total)],
        "seq_start_id": [sum(lengths[:i]) for i in range(len(lengths))],
    }


def save_npy(path, rows):
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    np.save(path, array, allow_pickle=True)


def save_parquet(path, rows, **options):
    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.bool_())), ("seq_start_id", pa.list_(pa.int64()))]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)


def save_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SAVE = {"npy": save_npy, "parquet": save_parquet, "jsonl": save_jsonl}


def input_lengths(packs):
    """Lengths without the last token of each sequence, of rows given by their sequences' tokens."""
    return [max(tokens - 1, 0) for lengths in packs for tokens in lengths]


def averages(packs):
    lengths = input_lengths(packs)
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    rows = len(packs)
    return (Fraction(len(lengths), rows), Fraction(tokens, rows), Fraction(squares, len(lengths)), Fraction(squares, rows))
