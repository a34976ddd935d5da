"""``.npy`` files of pickled rows: NeMo's packed SFT data, a dictionary with ``input_ids`` and ``seq_start_id`` each."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from bridge.data.packed.pickle import Array, List, RowReader
from bridge.data.packed.rows import Rows, integers


def batches(path: str) -> Iterator[tuple[list[Any], float]]:
    """The raw rows of a file, about a thousand at a time, with the share of the file that was read so far.

    Raises:
        ValueError, OSError, pickle.UnpicklingError: it is damaged, holds no rows, or holds more than plain data.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            raise ValueError("it is not an array of pickled rows")
        start = file.tell()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = RowReader(data, start)
    found = 0
    for batch in reader.batches():
        yield batch, reader.position / len(data)
        found += len(batch)
    if found != math.prod(shape):
        raise ValueError(f"it holds {found} of the {math.prod(shape)} rows its header promises")


def read(path: str) -> Iterator[Rows]:
    """The lengths in the rows of a file, about a thousand at a time.

    Raises:
        ValueError, OSError, pickle.UnpicklingError: see ``batches``; or it holds other rows.
    """
    found = 0
    for batch, share in batches(path):
        yield _rows(batch, found, share)
        found += len(batch)


def _rows(batch: list[Any], first_row: int, share: float) -> Rows:
    starts: list[int] = []
    sequences: list[int] = []
    totals: list[int] = []
    for number, row in enumerate(batch, first_row):
        try:
            tokens, begins = row["input_ids"], row["seq_start_id"]
        except (KeyError, TypeError):
            raise ValueError(f"row {number} is not a dictionary with input_ids and seq_start_id") from None
        if not isinstance(tokens, (List, Array)) or not isinstance(begins, (List, Array)):
            raise ValueError(f"input_ids and seq_start_id of row {number} must be lists or arrays")
        here = begins.values()
        starts.extend(here)
        sequences.append(len(here))
        totals.append(len(tokens))
    return Rows.from_starts(integers(starts, "seq_start_id"), sequences, totals, share, first_row)
