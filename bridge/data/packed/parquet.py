"""``.parquet`` files of packed rows: list columns ``input_ids`` and ``seq_start_id``, read column by column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bridge.data.packed.rows import Integers, Rows, integers

_COLUMNS = ("input_ids", "seq_start_id")

#: Tokens decoded at a time: bounds the memory, whatever the size of rows and row groups.
_TOKENS_AT_A_TIME = 4_000_000
_ROWS_AT_A_TIME = 131_072


def read(path: str) -> Iterator[Rows]:
    """The rows of a file, a few million tokens at a time.

    Raises:
        ValueError, OSError, pa.ArrowException: it is damaged, or its columns are not lists of integers.
    """
    # A buffered stream instead of whole column chunks: a row group may hold the whole file.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"it has no column {' and no column '.join(missing)}")
        rows, found = file.metadata.num_rows, 0
        size = max(1, min(_ROWS_AT_A_TIME, _TOKENS_AT_A_TIME * rows // max(_values(file.metadata, _COLUMNS[0]), 1)))
        for batch in file.iter_batches(batch_size=size, columns=list(_COLUMNS)):
            tokens, starts = (list_column(batch, name) for name in _COLUMNS)
            yield Rows.from_starts(
                integers(_numbers(starts.flatten()), "seq_start_id"),
                _sizes(starts),
                _sizes(tokens),
                (found + len(batch)) / rows,
                found,
            )
            found += len(batch)


def _values(metadata: Any, column: str) -> int:
    """The numbers stored in a list column."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def list_column(table: pa.RecordBatch | pa.Table, name: str) -> Any:
    """A column of a batch or a table.

    Raises:
        ValueError: not every row holds a list.
    """
    column, types = table.column(name), pa.types
    if not any(is_kind(column.type) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        raise ValueError(f"its column {name} holds {column.type}, not lists")
    if column.null_count:
        raise ValueError(f"its column {name} has rows without a value")
    return column


def _sizes(column: Any) -> Integers:
    return integers(_numbers(pc.list_value_length(column)), "list sizes")


def _numbers(array: pa.Array) -> Any:
    return array.to_numpy(zero_copy_only=False)
