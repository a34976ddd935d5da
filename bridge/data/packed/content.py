"""Rows of packed fine-tuning data with their tokens: makes them from examples, writes them to a file, reads them back.

A row has ``input_ids``, ``seq_start_id`` and ``loss_mask``, as NeMo's packed data has them.  A sequence is a prompt, its
answer and an end of document; its last token is only ever a label.  ``loss_mask`` is true at the positions whose *next* token
belongs to the answer.

Files are ``.npy`` (pickled dictionaries of lists) and ``.parquet`` (list columns).  Pickles are read by
:mod:`bridge.data.packed.pickle`, which executes nothing; their tokens stay in the file until a row is needed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.data.examples import Example
from bridge.data.packed import npy
from bridge.data.packed.files import shards_of
from bridge.data.packed.pickle import Array, List
from bridge.data.samples import Segment, pack
from bridge.data.tokenizer import Tokenizer
from bridge.flops.shapes import ConfigError

_FIELDS = ("input_ids", "seq_start_id", "loss_mask")
#: Token numbers are int32 from here on.
_LARGEST_TOKEN = 2**31 - 1


class PackedRow(NamedTuple):
    """Concatenated sequences.

    Attributes:
        input_ids: int32 [n], the tokens.
        seq_start_id: int64 [sequences], where each sequence starts, from 0.
        loss_mask: bool [n], where the next token is learned.
    """

    input_ids: NDArray[np.int32]
    seq_start_id: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]

    def segments(self) -> list[Segment]:
        """The sequences as (inputs, labels, mask of the learned labels); those without an input are left out."""
        bounds = pairwise([*self.seq_start_id.tolist(), len(self.input_ids)])
        return [
            (self.input_ids[start : end - 1], self.input_ids[start + 1 : end], self.loss_mask[start : end - 1])
            for start, end in bounds
            if end - start > 1
        ]


# ---- made -----------------------------------------------------------------------------------------------------------


def pack_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, *, size: int, longest: int, order: Sequence[int]
) -> list[PackedRow]:
    """Rows of at most ``size`` tokens.

    Args:
        size: tokens of a row.
        longest: tokens of a sequence; examples with more are left out.
        order: the numbers of the examples to take, in this order.
    """
    prompts = tokenizer.encode([examples[number].prompt for number in order])
    answers = tokenizer.encode([examples[number].answer for number in order])
    sequences = [
        (np.concatenate([prompt, answer, [tokenizer.eod]]).astype(np.int32), len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
        if len(prompt) + len(answer) < min(size, longest)
    ]
    groups = pack(range(len(sequences)), [len(tokens) for tokens, _ in sequences], size)
    return [_row([sequences[number] for number in group]) for group in groups]


def _row(sequences: Sequence[tuple[NDArray[np.int32], int]]) -> PackedRow:
    lengths = [len(tokens) for tokens, _ in sequences]
    return PackedRow(
        np.concatenate([tokens for tokens, _ in sequences]),
        np.cumsum([0, *lengths[:-1]]),
        np.concatenate([np.arange(len(tokens)) >= prompt - 1 for tokens, prompt in sequences]),
    )


# ---- written --------------------------------------------------------------------------------------------------------


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError if :func:`write_rows` cannot write a file with this ending."""
    if Path(path).suffix not in _WRITERS:
        raise ConfigError(f"packed file {path} must end in {' or '.join(_WRITERS)}")


def write_rows(path: str | os.PathLike[str], rows: Iterable[PackedRow]) -> None:
    """Write a packed file atomically; its ending determines its kind.

    Raises:
        ConfigError: an ending that is not ``.npy`` or ``.parquet``.
        OSError: it cannot be written.
    """
    check_ending(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[path.suffix](aside, [{name: value.tolist() for name, value in row._asdict().items()} for row in rows])
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_npy(path: Path, rows: list[dict[str, Any]]) -> None:
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    with open(path, "wb") as file:  # np.save would append .npy to a name
        np.save(file, array, allow_pickle=True)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = _arrow()
    types = (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.bool_()))
    schema = pa.schema(list(zip(_FIELDS, types, strict=True)))
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("packed .parquet files need pyarrow: pip install pyarrow, or use .npy") from None
    return pyarrow


_WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {".npy": _write_npy, ".parquet": _write_parquet}

# ---- read -----------------------------------------------------------------------------------------------------------


class PackedFile(Sequence[PackedRow]):
    """The rows of a packed file, shard by shard.

    Args:
        dataset_file: a file, a folder of shards, or a glob.
        option: the option that names it, for messages.

    Raises:
        ConfigError: it does not exist, is damaged, or holds more than plain rows.
    """

    def __init__(self, dataset_file: str, option: str) -> None:
        self._name = dataset_file
        self._option = option
        self._rows: list[Any] = []
        self._checksum = 0
        try:
            shards = shards_of(dataset_file)
        except ConfigError as error:
            problem = str(error).partition(";")[0]
            raise ConfigError(f"{option}: {problem}. Give another path; `bridge pack RECIPE FILE` writes such a file.") from None
        for shard in shards:
            reader = _CONTENTS.get(Path(shard).suffix)
            if reader is None:
                raise ConfigError(f"{option}={shard!r} has no tokens to train on; give {' or '.join(_CONTENTS)}")
            try:
                self._rows += reader(shard)
                self._checksum = _checksum(shard, self._checksum)
            except (MemoryError, ConfigError):
                raise
            except Exception as error:  # damaged bytes may raise anything
                raise ConfigError(f"{option}: {shard} cannot be read: {error or type(error).__name__}. Write it again") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._rows[index]()
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._option}={self._name!r}: row {index}: {error}. Write it again") from None

    def fingerprint(self) -> str:
        """A text that is equal if and only if the shards and their order are."""
        return f"{len(self)} packed rows, crc32 {self._checksum:08x}"


def _checksum(path: str, value: int) -> int:
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _read_npy(path: str) -> list[Callable[[], PackedRow]]:
    rows = [row for batch, _ in npy.batches(path) for row in batch]
    return [lambda row=row: _checked({name: _values(row, name) for name in _FIELDS}) for row in rows]  # type: ignore[misc]


def _values(row: Any, name: str) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise ValueError(f"it is not a dictionary with {name}")
    if not isinstance(row[name], (List, Array)):
        raise ValueError(f"{name} must be a list or an array")
    return row[name].values()


def _read_parquet(path: str) -> list[Callable[[], PackedRow]]:
    table = _arrow().parquet.read_table(path, columns=list(_FIELDS))
    from bridge.data.packed.parquet import list_column  # pyarrow, which is there now

    columns = {name: list_column(table, name) for name in _FIELDS}

    def read(index: int) -> PackedRow:
        return _checked({name: column[index].values.to_numpy(zero_copy_only=False) for name, column in columns.items()})

    return [lambda index=index: read(index) for index in range(len(table))]  # type: ignore[misc]


def _checked(row: dict[str, Any]) -> PackedRow:
    """The row as arrays.

    Raises:
        ValueError: its parts do not fit together.
    """
    tokens, starts, mask = (np.asarray(row[name]) for name in _FIELDS)
    if any(part.ndim != 1 or part.dtype.kind not in "iub" for part in (tokens, starts, mask)):
        raise ValueError(f"{', '.join(_FIELDS)} must hold integers")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) <= _LARGEST_TOKEN:
        raise ValueError(f"input_ids of {tokens.min()} to {tokens.max()} are not tokens")
    if len(mask) != len(tokens):
        raise ValueError(f"{len(tokens)} input_ids have a loss_mask of {len(mask)}")
    if not len(starts) or starts[0] != 0 or (np.diff([*starts, len(tokens)]) < 0).any():
        raise ValueError(f"{len(tokens)} input_ids, and seq_start_id {starts[:8].tolist()} must rise from 0 up to their number")
    found = PackedRow(tokens.astype(np.int32), starts.astype(np.int64), mask.astype(np.bool_))
    if not found.segments():
        raise ValueError("no sequence has two tokens")
    return found


_CONTENTS: dict[str, Callable[[str], list[Callable[[], PackedRow]]]] = {
    ".npy": _read_npy,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
