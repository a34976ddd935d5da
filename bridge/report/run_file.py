"""Reads the rows of a finished or running training run from ``metrics.jsonl`` or from the ``run-*.wandb`` of an offline W&B run.

Files are untrusted.  Values are parsed as JSON only.  The frame around them in a W&B file (a LevelDB log of protobuf records)
is read here, with bounds on every length, so that neither wandb nor protobuf is needed.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from bridge.flops import ConfigError
from bridge.metrics.keys import PREFIX
from bridge.report.stretches import MOST_HELD, Stretches, Thinned, merged

MAX_BYTES = 32 * 1024 * 1024
MAX_ROWS = 100_000
_STEPS = ("step", PREFIX + "step", "throughput/step", "_step")
_MOST_BYTES_A_ROW = 1024 * 1024
_KEYS_A_ROW = 1000
_LEAST, _MOST = 1e-250, 1e250
LoggedRow = dict[str, Any]


@dataclass
class RecordedRun:
    """A run's numbers by key and step, its facts, and how much of the file could not be read.

    Attributes:
        kind: the kind of the file.
        steps: the steps in rising order; each is one row.
        columns: numbers by key, one per step; None where a step has none.
        skipped: the number of damaged lines or records.
        torn: whether the file ends in the middle of a row, as a killed run's may.
        facts: constants and results, by name; any JSON values.
        name: the run's name, if the file states it.
        whole: set for a run too long to be kept: then ``steps`` and ``columns`` hold only the extremes of every stretch.
    """

    kind: str
    steps: Sequence[Any] = ()
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)
    skipped: int = 0
    torn: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    whole: Thinned | None = None

    @property
    def count(self) -> int:
        """The number of rows in the file, including those that were not kept."""
        return len(self.steps) if self.whole is None else self.whole.count

    def series(self, key: str) -> Sequence[Any]:
        """The values of a key, None where a row has none."""
        return self.steps if key == "step" else self.columns.get(key) or [None] * len(self.steps)

    def names(self) -> list[str]:
        """All keys but the step, in the order they first come."""
        return list(self.columns)

    @property
    def rows(self) -> list[LoggedRow]:
        """The same by row; slow for long runs."""
        rows: list[LoggedRow] = [{"step": step} for step in self.steps]
        for key, column in self.columns.items():
            for row, value in zip(rows, column, strict=True):
                if value is not None:
                    row[key] = value
        return rows

    def take(self, rows: Iterable[LoggedRow]) -> None:
        """Replace all rows. They may come in any order; of several rows with one step, later values win."""
        ordered = sorted(rows, key=itemgetter("step"))
        names = dict.fromkeys(key for row in ordered for key in row if key != "step")
        steps = [row["step"] for row in ordered]
        self.steps, self.columns = merged(steps, {name: [row.get(name) for row in ordered] for name in names})


def read_run(path: str | Path, *, bounded: bool = True, thinned: bool = False) -> RecordedRun:
    """Read a file of either kind.

    Args:
        path: the file.
        bounded: whether to refuse files that are too large for a page that serves several users.
        thinned: whether to keep only the extremes of every stretch of a long run, which is enough to draw it.

    Raises:
        ConfigError: the file is too large, of neither kind, or has no rows.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if bounded and size > MAX_BYTES:
            raise ConfigError(f"{file.name} has {size / 2**20:.0f} MiB; the page reads runs of up to {MAX_BYTES // 2**20} MiB")
        with open(file, "rb") as opened:
            run = _read(opened, MAX_ROWS if bounded else math.inf, thinned)
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from None
    if not run.steps:
        raise ConfigError(
            f"{file.name} holds no rows of metrics (yet?); name a run's metrics.jsonl, or the run-*.wandb file of an offline run"
        )
    return run


def _read(file: BinaryIO, most: float, thinned: bool) -> RecordedRun:
    begin = file.read(len(_WANDB_MAGIC))
    file.seek(0)
    if begin == _WANDB_MAGIC:
        run = RecordedRun("offline W&B run")
        rows = [numbers for row in _wandb(file.read(), run) if (numbers := _kept(run, row)) is not None]
        _check_rows(len(rows), most)
        run.take(rows)
        return run
    return _jsonl(file, most, Stretches(MOST_HELD if thinned else math.inf))


def _check_rows(rows: int, most: float) -> None:
    if rows > most:
        raise ConfigError(f"the file has more than {most:,} rows; thin it out first")


def _kept(run: RecordedRun, row: Any) -> LoggedRow | None:
    """The finite numbers of a row; one without a step is counted as damaged and gives None."""
    if isinstance(row, dict) and len(row) <= _KEYS_A_ROW:
        row = {**row, "step": next((row[name] for name in _STEPS if name in row), None)}
        numbers = {str(key): value for key, value in row.items() if _is_number(value)}
        if "step" in numbers:
            return numbers
    run.skipped += 1
    return None


def _is_number(value: Any) -> bool:
    """Whether the value can be drawn: sums of such values, in any unit, still fit a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not value or _LEAST < abs(value) < _MOST


# ---- JSON lines --------------------------------------------------------------------------------------------------


#: Bytes of lines that are read together; they fit a processor's cache.
_BYTES_OF_LINES = 256 * 1024


def _jsonl(file: BinaryIO, most: float, stretches: Stretches) -> RecordedRun:
    run = RecordedRun("metrics.jsonl")
    while lines := file.readlines(_BYTES_OF_LINES):
        rows = _at_once(lines) or [row for line in lines if (row := _parsed(run, line)) is not None]
        stretches.add(_columns(run, rows))
        _check_rows(stretches.count, most)
    stretches.give(run)
    if any(later <= step for step, later in pairwise(run.steps)):
        run.steps, run.columns = merged(run.steps, run.columns)
    return run


def _at_once(lines: Sequence[bytes]) -> list[LoggedRow] | None:
    """The rows of lines that are all regular, parsed in one call, which takes three quarters of the time; None for others."""
    rows = parse(b"[%b]" % b",".join(lines)) if max(map(len, lines)) <= _MOST_BYTES_A_ROW else None
    if not isinstance(rows, list) or len(rows) != len(lines) or set(map(type, rows)) != {dict}:
        return None
    return rows if max(map(len, rows)) <= _KEYS_A_ROW else None


def _columns(run: RecordedRun, rows: Sequence[LoggedRow]) -> dict[str, Any]:
    """The columns of rows; rows with the same keys are handled together, because a run has few forms of rows."""
    forms: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        forms.setdefault(tuple(row), []).append(place)
    if len(forms) == 1 and (whole := _of_one_form(rows)):
        return whole
    columns: dict[str, Any] = {}
    for places in forms.values():
        alike = [rows[place] for place in places]
        if found := _of_one_form(alike):
            _put(columns, places, found, len(rows))
            continue
        for place, row in zip(places, alike, strict=True):
            numbers = _kept(run, row) or {}
            _put(columns, [place], {name: [value] for name, value in numbers.items()}, len(rows))
    there = [place for place, step in enumerate(columns.get("step", ())) if step is not None]
    return {name: _tight([column[place] for place in there]) for name, column in columns.items()}


def _of_one_form(rows: Sequence[LoggedRow]) -> dict[str, Any] | None:
    """The columns of rows with the same keys, if each holds numbers of one type that can be drawn."""
    if "step" not in rows[0]:
        return None
    columns = {}
    for name, values in zip(rows[0], zip(*map(dict.values, rows), strict=True), strict=True):
        kinds = set(map(type, values))
        if kinds == {float} and _can_be_drawn(values):
            columns[name] = _packed("d", values)
        elif kinds == {int} and min(values) > -_MOST and max(values) < _MOST:
            columns[name] = _packed("q", values)
        else:
            return None
    return columns


def _can_be_drawn(values: Sequence[float]) -> bool:
    """Whether ``_is_number`` holds for all values; they are checked one by one only if the extremes do not decide it."""
    least, most = min(values), max(values)
    if not math.isfinite(sum(values)) or least <= -_MOST or most >= _MOST:
        return False
    return least >= _LEAST or most <= -_LEAST or least == most == 0 or all(map(_is_number, values))


def _packed(code: str, values: Sequence[Any]) -> Sequence[Any]:
    """The numbers as an array; integers of more than 64 bits as a list."""
    try:
        return array(code, struct.pack(f"{len(values)}{code}", *values))  # an array converts numbers one by one, slowly
    except struct.error:
        return list(values)


def _tight(column: list[Any]) -> Sequence[Any]:
    """As ``_packed``, if all numbers of the column have one type; else the column itself."""
    kinds = set(map(type, column))
    return _packed("d" if kinds == {float} else "q", column) if kinds in ({float}, {int}) else column


def _put(columns: dict[str, Any], places: Sequence[int], values: Mapping[str, Sequence[Any]], count: int) -> None:
    for name, found in values.items():
        column = columns.setdefault(name, [None] * count)
        for place, value in zip(places, found, strict=True):
            column[place] = value


def _parsed(run: RecordedRun, line: bytes) -> LoggedRow | None:
    """The numbers of a line; None, and counted, if it has none."""
    if not line.strip():
        return None
    row = parse(line) if len(line) <= _MOST_BYTES_A_ROW else None
    if row is None and not line.endswith(b"\n"):
        run.torn = True
        return None
    return _kept(run, row)


def parse(text: bytes | str) -> Any:
    """The value of a JSON text; None if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- W&B ---------------------------------------------------------------------------------------------------------

_WANDB_MAGIC, _WANDB_HEADER = b":W&B", 7  # the header: magic, a magic number and a version
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# Field numbers of wandb_internal.proto. Histories, configurations and summaries have items of one form.
_RECORD_HISTORY, _RECORD_SUMMARY, _RECORD_CONFIG, _RECORD_RUN = 2, 3, 5, 17
_RUN_CONFIG, _RUN_NAME = 4, 8
_ITEM, _ITEM_KEY, _ITEM_NESTED_KEY, _ITEM_VALUE = 1, 1, 2, 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _wandb(data: bytes, run: RecordedRun) -> Iterator[Any]:
    """The rows of a file, None for a damaged record; the run's name and facts are set on the way."""
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


def _take_run(run: RecordedRun, message: bytes) -> None:
    """Take the run's name and its first configuration."""
    for number, value in _fields(message):
        if number == _RUN_CONFIG:
            run.facts |= _items(value)
        elif number == _RUN_NAME:
            run.name = value.decode(errors="replace")


def _items(message: bytes) -> LoggedRow:
    row = {}
    for number, item in _fields(message):
        if number == _ITEM:
            texts: dict[int, list[str]] = {}
            for field_number, value in _fields(item):
                texts.setdefault(field_number, []).append(value.decode(errors="replace"))
            key = "".join(texts.get(_ITEM_KEY, [])) or ".".join(texts.get(_ITEM_NESTED_KEY, []))
            row[key] = parse("".join(texts.get(_ITEM_VALUE, [])))
    return row


def _records(data: bytes, run: RecordedRun) -> Iterator[bytes]:
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
    """The length-delimited fields of a protobuf message; ValueError if it is not one."""
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
