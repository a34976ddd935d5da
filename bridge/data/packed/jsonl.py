"""``.jsonl`` files with one packed row per line.

A row gives ``lengths`` (the tokens of each sequence), ``length`` (of its only sequence), or ``input_ids`` with ``seq_start_id``;
all rows of a file have the same fields.  As everywhere, a sequence of n tokens has n - 1 inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from bridge.data.packed.rows import Rows, integers

_ROWS_AT_A_TIME = 16_384

Fields = Callable[[list[dict[str, Any]], float, int], Rows]


def read(path: str) -> Iterator[Rows]:
    """The rows of a file, some thousand at a time.

    Raises:
        ValueError, OSError: a line is not a JSON object, or has none of the known fields.
    """
    size, found, read_fields = os.path.getsize(path), 0, None
    with open(path, "rb") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        while chunk := [_parse(number, line) for number, line in islice(lines, _ROWS_AT_A_TIME)]:
            read_fields = read_fields or _fields(chunk[0])
            try:
                yield read_fields(chunk, min(file.tell() / size, 1.0), found)
            except KeyError as error:
                raise ValueError(f"a row from number {found} on has no field {error.args[0]}, which its first row has") from None
            found += len(chunk)


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _from_lengths(rows: list[dict[str, Any]], share: float, first_row: int) -> Rows:
    lengths = [row["lengths"] for row in rows]
    return Rows.from_tokens(
        integers([n for row in lengths for n in row], "lengths"), [len(row) for row in lengths], share, first_row
    )


def _from_length(rows: list[dict[str, Any]], share: float, first_row: int) -> Rows:
    return Rows.from_tokens(integers([row["length"] for row in rows], "length"), [1] * len(rows), share, first_row)


def _from_tokens(rows: list[dict[str, Any]], share: float, first_row: int) -> Rows:
    starts = [row["seq_start_id"] for row in rows]
    return Rows.from_starts(
        integers([n for row in starts for n in row], "seq_start_id"),
        [len(row) for row in starts],
        [len(row["input_ids"]) for row in rows],
        share,
        first_row,
    )


_FIELDS: dict[str, Fields] = {"lengths": _from_lengths, "length": _from_length, "seq_start_id": _from_tokens}


def _fields(row: dict[str, Any]) -> Fields:
    for name, reader in _FIELDS.items():
        if name in row:
            return reader
    raise ValueError("its rows have neither lengths, nor length, nor input_ids with seq_start_id")
