"""Rows of a finished or a running training run: a ``metrics.jsonl``, or the ``run-*.wandb`` of an offline W&B run.

Files are a stranger's.  Values are parsed as JSON and nothing else; the frame around them in a W&B file (LevelDB's log of
protobuf records) is read here with bounds on every length, so that readers need neither wandb nor protobuf.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from bridge.flops import ConfigError
from bridge.metrics.keys import PREFIX

MAX_BYTES = 32 * 1024 * 1024
MAX_ROWS = 100_000
_STEPS = ("step", PREFIX + "step", "throughput/step", "_step")
_MOST_BYTES_A_ROW = 1024 * 1024
_KEYS_A_ROW = 1000
_LEAST, _MOST = 1e-250, 1e250
Row = dict[str, Any]


@dataclass
class Run:
    """A run's rows by step, its facts, and what of the file could not be read.

    Attributes:
        rows: numbers by key, in rising order of ``step``; rows of one step are one.
        kind: what the file was.
        skipped: lines or records that were damaged.
        torn: the file ends in the middle of a row, as a killed run's may.
        facts: constants and results, by name; any JSON values.
        name: what the run is called, where the file says so.
    """

    kind: str
    rows: list[Row] = field(default_factory=list)
    skipped: int = 0
    torn: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def series(self, key: str) -> list[Any]:
        """The values of a key, None where a row has none."""
        return [row.get(key) for row in self.rows]

    def names(self) -> list[str]:
        """All keys but the step, in the order they first come."""
        return [key for key in dict.fromkeys(key for row in self.rows for key in row) if key != "step"]


def read_run(path: str | Path, *, bounded: bool = True) -> Run:
    """Read a file of either kind.

    Args:
        path: the file.
        bounded: whether to refuse what is too large for a page that serves others.

    Raises:
        ConfigError: too large, neither kind, or without a row.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if bounded and size > MAX_BYTES:
            raise ConfigError(f"{file.name} has {size / 2**20:.0f} MiB; the page reads runs of up to {MAX_BYTES // 2**20} MiB")
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from None
    run, rows = _wandb(data) if data.startswith(_WANDB_MAGIC) else _jsonl(data)
    _collect(run, rows, MAX_ROWS if bounded else math.inf)
    if not run.rows:
        raise ConfigError(
            f"{file.name} holds no rows of metrics (yet?); name a run's metrics.jsonl, or the run-*.wandb file of an offline run"
        )
    return run


def _collect(run: Run, found: Iterator[Any], most: float) -> None:
    """Rows of one step together, in rising order of steps."""
    rows: dict[float, Row] = {}
    for i, row in enumerate(found):
        if i >= most:
            raise ConfigError(f"the file has more than {most:,} rows; thin it out first")
        numbers = _numbers(row)
        if numbers is None:
            run.skipped += 1
        else:
            rows.setdefault(numbers["step"], {}).update(numbers)
    run.rows = [rows[step] for step in sorted(rows)]
    if any(name.startswith(PREFIX) for row in run.rows for name in row):
        run.rows = [_ours(row) for row in run.rows]
        run.facts = _ours(run.facts)


def _ours(values: Row) -> Row:
    """In a run of somebody else ours begin with ``bridge/``; what has their names without it is not ours."""
    others = {name: value for name, value in values.items() if not name.startswith(PREFIX) and not name.startswith("throughput/")}
    return others | {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}


def _numbers(row: Any) -> Row | None:
    """The finite numbers of a row; None where it has no step."""
    if not isinstance(row, dict) or len(row) > _KEYS_A_ROW:
        return None
    row = {**row, "step": next((row[name] for name in _STEPS if name in row), None)}
    numbers = {str(key): value for key, value in row.items() if _is_number(value)}
    return numbers if "step" in numbers else None


def _is_number(value: Any) -> bool:
    """Whether it can be drawn: also added up and put into another unit it stays what a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not value or _LEAST < abs(value) < _MOST


# ---- JSON lines --------------------------------------------------------------------------------------------------


def _jsonl(data: bytes) -> tuple[Run, Iterator[Any]]:
    run = Run("metrics.jsonl")

    def rows() -> Iterator[Any]:
        for line in io.BytesIO(data):  # one at a time: none is kept
            row = parse(line) if len(line) <= _MOST_BYTES_A_ROW else None
            if row is None and not line.endswith(b"\n"):
                run.torn = True
            elif line.strip():
                yield row

    return run, rows()


def parse(text: Union[bytes, str]) -> Any:
    """The value of a JSON text, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- W&B ---------------------------------------------------------------------------------------------------------

_WANDB_MAGIC = b":W&B"
_WANDB_HEADER = 7  # magic, a magic number and a version
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# Field numbers of wandb_internal.proto. Histories, configurations and summaries have items of one form.
_RECORD_HISTORY, _RECORD_SUMMARY, _RECORD_CONFIG, _RECORD_RUN = 2, 3, 5, 17
_RUN_CONFIG, _RUN_NAME = 4, 8
_ITEM, _ITEM_KEY, _ITEM_NESTED_KEY, _ITEM_VALUE = 1, 1, 2, 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _wandb(data: bytes) -> tuple[Run, Iterator[Any]]:
    run = Run("offline W&B run")

    def rows() -> Iterator[Any]:
        for record in _records(data, run):
            try:
                for number, value in _fields(record):
                    if number == _RECORD_HISTORY:
                        yield _items(value)
                    elif number in (_RECORD_CONFIG, _RECORD_SUMMARY):
                        run.facts |= _items(value)
                    elif number == _RECORD_RUN:
                        _take_run(run, value)
            except ValueError:
                yield None

    return run, rows()


def _take_run(run: Run, message: bytes) -> None:
    """What a run is called, and its first configuration."""
    for number, value in _fields(message):
        if number == _RUN_CONFIG:
            run.facts |= _items(value)
        elif number == _RUN_NAME:
            run.name = value.decode(errors="replace")


def _items(message: bytes) -> Row:
    row = {}
    for number, item in _fields(message):
        if number == _ITEM:
            texts: dict[int, list[str]] = {}
            for field_number, value in _fields(item):
                texts.setdefault(field_number, []).append(value.decode(errors="replace"))
            key = "".join(texts.get(_ITEM_KEY, [])) or ".".join(texts.get(_ITEM_NESTED_KEY, []))
            row[key] = parse("".join(texts.get(_ITEM_VALUE, [])))
    return row


def _records(data: bytes, run: Run) -> Iterator[bytes]:
    """The records of a LevelDB log: chunks in blocks of 32 KiB, the file's header counting as part of the first."""
    place, parts = _WANDB_HEADER, bytearray()
    while place + _CHUNK.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK.size:  # too short for a header: filled with zeros
            place += left
            continue
        _, length, kind = _CHUNK.unpack_from(data, place)
        if kind == 0 and length == 0:  # space that was never written
            break
        chunk = data[place + _CHUNK.size : place + _CHUNK.size + length]
        if kind > _LAST or len(chunk) < length or length > left - _CHUNK.size:
            run.torn = True
            return
        place += _CHUNK.size + length
        if kind in (_FULL, _FIRST):
            parts.clear()
        parts += chunk
        if kind in (_FULL, _LAST):
            yield bytes(parts)
            parts.clear()
    run.torn = run.torn or bool(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message; ValueError where it is none."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == _BYTES:
            length, place = _varint(message, place)
            if place + length > len(message):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, message[place : place + length]
            place += length
        elif kind == _VARINT:
            _, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a field of a kind that is not used")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[place : place + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, place + i + 1
    raise ValueError("a number without an end")
