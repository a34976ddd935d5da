"""Sequence lengths of packed fine-tuning files, without training on them and without trusting them.

A row holds ``input_ids`` and ``seq_start_id`` (NeMo's packed SFT data).  ``.npy`` files hold pickled rows: they are read by an
unpickler that builds lists, dictionaries and numpy arrays and refuses everything else.  ``.parquet`` files are read column by
column.  Each sequence counts without its last token, which is never an input.
"""

from __future__ import annotations

import glob
import io
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from bridge.flops.model_shape import ConfigError, get, model_of


@dataclass(frozen=True)
class PackedStatistics:
    """Integer sums over the rows of a packed file.

    Attributes:
        rows: packs counted.
        sequences: sequences in them.
        tokens: their tokens, the last one of each left out.
        squared_tokens: sum of the squares of those lengths.
    """

    rows: int
    sequences: int
    tokens: int
    squared_tokens: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> PackedStatistics:
        """From the sequence lengths of each row."""
        lengths = [length for row in rows for length in row]
        return cls(len(rows), len(lengths), sum(lengths), sum(length * length for length in lengths))


def calculate_avg_seqlen(
    dataset_file: str, gbs: int, max_seq_len: int | None, drop_remainder: bool
) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Averages of a packed file, as Megatron-Bridge's packing utilities define them, but exact.

    Args:
        dataset_file: ``.npy`` or ``.parquet`` (one file, a folder or a glob).
        gbs: rows of a global batch.
        max_seq_len: not used; part of the known signature.
        drop_remainder: leave out the rows that do not fill a global batch.

    Returns:
        Sequences per row, tokens per row, mean squared length, squared lengths per row.

    Raises:
        ConfigError: the file cannot be read, or holds no row to count.
    """
    rows = list(row_lengths(dataset_file))
    count = len(rows) // gbs * gbs if drop_remainder else len(rows)
    found = PackedStatistics.of(rows[:count])
    if not found.sequences:
        raise ConfigError(
            f"packed file {dataset_file}: {len(rows)} rows make no full global batch of {gbs}; "
            "lower train.global_batch_size or add data"
        )
    return (
        Fraction(found.sequences, found.rows),
        Fraction(found.tokens, found.rows),
        Fraction(found.squared_tokens, found.sequences),
        Fraction(found.squared_tokens, found.rows),
    )


def row_lengths(dataset_file: str) -> Iterator[list[int]]:
    """The sequence lengths of each row, in file order."""
    files = packed_files(dataset_file)
    for path in files:
        yield from _parquet_lengths(path) if path.endswith(".parquet") else _npy_lengths(path)


def packed_files(dataset_file: str) -> list[str]:
    """The shards behind a path: itself, the parquet files of a folder, or what a glob matches."""
    if os.path.isdir(dataset_file):
        found = sorted(glob.glob(os.path.join(glob.escape(dataset_file), "*.parquet")))
    elif glob.has_magic(dataset_file) and not os.path.exists(dataset_file):
        found = sorted(glob.glob(dataset_file))
    else:
        found = [dataset_file]
    for path in found:
        if not os.path.isfile(path):
            raise ConfigError(f"packed file {path} does not exist; check dataset.packed_sequence_specs.packed_train_data_path")
        if not path.endswith((".npy", ".parquet")):
            raise ConfigError(f"packed file {path} must be .npy or .parquet")
    if not found:
        raise ConfigError(f"packed file {dataset_file} matches no file")
    return found


def table_key(dataset_file: str, global_batch_size: int, seq_length: int | None) -> tuple[Any, ...]:
    """What identifies the statistics of a file: its shards with size and modification time, batch and sequence length."""
    shards = tuple((path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in packed_files(dataset_file))
    return (shards, global_batch_size, seq_length)


def find_packed_file(cfg: Any) -> str | None:
    """The packed training file a configuration names, or the one under its dataset_root; None without one."""
    dataset = get(cfg, "dataset")
    specs = get(dataset, "packed_sequence_specs")
    if specs is None:
        return None
    named = get(specs, "packed_train_data_path")
    if named is not None:
        return str(named)
    root, size = get(dataset, "dataset_root"), get(specs, "packed_sequence_size") or get(model_of(cfg), "seq_length")
    if root is None or size is None:
        return None
    for ending in (".idx.parquet", ".npy"):
        matches = sorted(Path(root).glob(f"packed/*/training_{size}{ending}"))
        if matches:
            return str(matches[0])
    return None


# ---- readers -------------------------------------------------------------------------------------

#: What a pickled array of rows consists of; anything else is refused.
_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype")}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only lists, dictionaries and numpy arrays are read")
        return super().find_class(module, name)


def _npy_lengths(path: str) -> Iterator[list[int]]:
    import numpy as np

    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read_header(file)
            if not dtype.hasobject:
                raise ValueError("it is not an array of pickled rows")
            rows = _RestrictedUnpickler(io.BufferedReader(file)).load()
        for row in rows:
            yield _lengths(row["seq_start_id"], len(row["input_ids"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"packed file {path} cannot be read: {error}") from None


def _parquet_lengths(path: str) -> Iterator[list[int]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["input_ids", "seq_start_id"]):
                totals = pc.list_value_length(batch.column("input_ids")).to_pylist()
                for starts, total in zip(batch.column("seq_start_id").to_pylist(), totals, strict=True):
                    yield _lengths(starts, total)
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise ConfigError(f"packed file {path} cannot be read: {error}") from None


def _lengths(starts: Sequence[int], total: int) -> list[int]:
    ends = [*starts[1:], total]
    return [int(end) - int(start) - 1 for start, end in zip(starts, ends, strict=True)]
