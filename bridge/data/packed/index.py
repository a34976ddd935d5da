"""megatron-core's indexed datasets (``.bin`` and ``.idx``); the index alone has the length of every sequence.

A row is a document with its sequences.  Layout of the index, little-endian (megatron-core,
``core/datasets/indexed_dataset.py``): magic, version 1 (u64), dtype code (u8), number of sequences and of document bounds
(u64 each); then the lengths (i32), their byte offsets in the .bin (i64), and the document bounds (i64, the first one is 0).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np

from bridge.data.packed.rows import Rows

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")

#: Bytes of one token by dtype code.
_TOKEN_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}

_ROWS_AT_A_TIME = 131_072


def read(path: str) -> Iterator[Rows]:
    """The documents of an index, some at a time.

    Raises:
        ValueError, OSError: it is damaged or not an index, or its .bin is too short for it.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise ValueError("it is not an index file of megatron-core")
    _, version, code, sequences, bounds = _HEADER.unpack(head)
    if version != 1 or code not in _TOKEN_BYTES or not bounds:
        raise ValueError(f"its version {version} with dtype {code} and {bounds} document bounds is unknown")
    wanted, size = _HEADER.size + 12 * sequences + 8 * bounds, os.path.getsize(path)
    if size < wanted:
        raise ValueError(f"it is truncated: {size} of {wanted} bytes")
    lengths = np.memmap(path, np.dtype("<i4"), "r", _HEADER.size, (sequences,)) if sequences else np.empty(0, np.int32)
    documents = np.memmap(path, np.dtype("<i8"), "r", _HEADER.size + 12 * sequences, (bounds,))
    if documents[0] != 0 or documents[-1] != sequences:
        raise ValueError(f"its documents end at sequence {documents[-1]} of {sequences}")
    tokens = 0
    for first in range(0, bounds - 1, _ROWS_AT_A_TIME):
        here = np.array(documents[first : first + _ROWS_AT_A_TIME + 1], np.int64)
        per_row = np.diff(here)
        if per_row.min() < 0 or here[-1] > sequences:
            raise ValueError("its documents are not in order")
        of_sequences = np.array(lengths[here[0] : here[-1]], np.int64)
        tokens += int(of_sequences.sum())
        yield Rows.from_tokens(of_sequences, per_row, (first + len(per_row)) / (bounds - 1), first)
    _check_bin(path, tokens * _TOKEN_BYTES[code])


def _check_bin(path: str, wanted: int) -> None:
    """Check the size of the .bin, if it is on this machine, which is not required."""
    tokens = path.removesuffix(".idx") + ".bin"
    if os.path.exists(tokens) and os.path.getsize(tokens) < wanted:
        raise ValueError(f"{tokens} is truncated: {os.path.getsize(tokens)} of {wanted} bytes")
