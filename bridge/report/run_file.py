"""Rows of a finished or a running training run: a ``metrics.jsonl``, or the ``run-*.wandb`` of an offline W&B run.

Files are a stranger's.  Values are parsed as JSON and nothing else; the frame around them in a W&B file (LevelDB's log of
protobuf records) is read here with bounds on every length, so that readers need neither wandb nor protobuf.
"""

from __future__ import annotations

import json
import math
import re
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
Row = dict[str, Any]


@dataclass
class RecordedRun:
    """A run's numbers by key and step, its facts, and what of the file could not be read.

    Attributes:
        kind: what the file was.
        steps: in rising order; numbers of one step are one row.
        columns: numbers by key, one a step, None where a step has none.
        skipped: lines or records that were damaged.
        torn: the file ends in the middle of a row, as a killed run's may.
        facts: constants and results, by name; any JSON values.
        name: what the run is called, where the file says so.
        whole: of a run too long to be held, of which ``steps`` and ``columns`` have the extremes of every stretch.
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
        """Rows, those that were let go included."""
        return len(self.steps) if self.whole is None else self.whole.count

    def series(self, key: str) -> Sequence[Any]:
        """The values of a key, None where a row has none."""
        return self.steps if key == "step" else self.columns.get(key) or [None] * len(self.steps)

    def names(self) -> list[str]:
        """All keys but the step, in the order they first come."""
        return list(self.columns)

    @property
    def rows(self) -> list[Row]:
        """The same by row: for what is short."""
        rows: list[Row] = [{"step": step} for step in self.steps]
        for key, column in self.columns.items():
            for row, value in zip(rows, column, strict=True):
                if value is not None:
                    row[key] = value
        return rows

    def take(self, rows: Iterable[Row]) -> None:
        """Rows in any order; later ones of a step add to it, and replace."""
        ordered = sorted(rows, key=itemgetter("step"))
        names = dict.fromkeys(key for row in ordered for key in row if key != "step")
        steps = [row["step"] for row in ordered]
        self.steps, self.columns = merged(steps, {name: [row.get(name) for row in ordered] for name in names})


def read_run(path: str | Path, *, bounded: bool = True, thinned: bool = False) -> RecordedRun:
    """Read a file of either kind.

    Args:
        path: the file.
        bounded: whether to refuse what is too large for a page that serves others.
        thinned: for what draws it: 15 digits of a number, and of a long run the extremes of every stretch.

    Raises:
        ConfigError: too large, neither kind, or without a row.
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
        run, found = _wandb(file.read())
        rows = [numbers for row in found if (numbers := _kept(run, row)) is not None]
        _check_rows(len(rows), most)
        run.take(rows)
        return run
    return _jsonl(file, most, Stretches(MOST_HELD if thinned else math.inf), rough=thinned)


def _check_rows(rows: int, most: float) -> None:
    if rows > most:
        raise ConfigError(f"the file has more than {most:,} rows; thin it out first")


def _kept(run: RecordedRun, row: Any) -> Row | None:
    """The numbers of a row; one without a step is counted as damaged."""
    numbers = _numbers(row)
    run.skipped += numbers is None
    return numbers


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


#: A number that needs no further look: neither NaN nor too large or small to be drawn.
_INTEGER = rb"(-?[0-9]{1,200})"
_DECIMAL = rb"(-?[0-9]{1,40}(?:\.[0-9]{1,40}(?:[eE][-+]?[0-9]{1,2})?|[eE][-+]?[0-9]{1,2}))"
#: The digits of one that a drawing has: a machine reads 15 of them in half the time that 17 take.
_ROUGH = rb"(-?[0-9]{1,40}\.[0-9]{1,13})[0-9]{0,40}"
#: Forms of lines that are known at once, and bytes of lines that are read together: what a processor keeps near.
_MOST_FORMS, _BYTES_OF_LINES = 8, 256 * 1024


class _Form:
    """Lines that have the same keys, read without a parser: a run repeats few forms many times.

    Args:
        row: the numbers of the first such line, in its order.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.items = tuple((name, type(value)) for name, value in row.items())
        exact = {name: _INTEGER if kind is int else _DECIMAL for name, kind in self.items}
        self.line = self._pattern(exact.values())
        rough = {name: _ROUGH for name, kind in self.items if kind is float and "e" not in repr(row[name])}
        self.rough = self._pattern((exact | rough).values())

    def _pattern(self, numbers: Iterable[bytes]) -> re.Pattern[bytes]:
        keys = (re.escape(json.dumps(name).encode()) for name, _ in self.items)
        items = (key + b": " + number for key, number in zip(keys, numbers, strict=True))
        return re.compile(rb"^\{" + b", ".join(items) + rb"\}\n", re.MULTILINE)

    def columns(self, rows: Sequence[tuple[bytes, ...]]) -> dict[str, Any]:
        """The values of what a pattern found in lines."""
        texts = zip(*rows, strict=True)
        return {name: _column(kind, column) for (name, kind), column in zip(self.items, texts, strict=True)}


def _column(kind: type, texts: Sequence[Any]) -> Sequence[Any]:
    """Values of one type; integers of more than 64 bits as a list."""
    values, code = list(map(kind, texts)), "d" if kind is float else "q"
    try:
        return array(code, struct.pack(f"{len(values)}{code}", *values))  # an array by itself takes one by one, slowly
    except struct.error:
        return values


def _jsonl(file: BinaryIO, most: float, stretches: Stretches, rough: bool) -> RecordedRun:
    run = RecordedRun("metrics.jsonl")
    forms: list[_Form] = []
    while lines := file.readlines(_BYTES_OF_LINES):
        stretches.add(_of_one_form(lines, forms, rough) or _mixed(run, lines, forms))
        _check_rows(stretches.count, most)
    stretches.give(run)
    if any(later <= step for step, later in pairwise(run.steps)):
        run.steps, run.columns = merged(run.steps, run.columns)
    return run


def _of_one_form(lines: Sequence[bytes], forms: Sequence[_Form], rough: bool) -> dict[str, Any] | None:
    """The columns of lines that all are of the usual form; None where one is not."""
    text = b"".join(lines)
    for form in forms[:1]:
        for pattern in (form.rough, form.line)[not rough :]:
            if len(found := pattern.findall(text)) == len(lines):
                return form.columns(found)
    return None


def _mixed(run: RecordedRun, lines: Sequence[bytes], forms: list[_Form]) -> dict[str, Any]:
    """The columns of any lines, each form by itself; the one that most have becomes the usual one."""
    by_form: dict[_Form, list[int]] = {}
    others = []
    for place, line in enumerate(lines):
        form = next((form for form in forms if form.line.match(line)), None)
        if form is None:
            others.append(place)
            _learn(forms, line)
        else:
            by_form.setdefault(form, []).append(place)
    columns: dict[str, Any] = {}
    for form, places in by_form.items():
        matches = [form.line.match(lines[place]) for place in places]
        _put(columns, places, form.columns([match.groups() for match in matches if match]), len(lines))
    rows = {place: row for place in sorted(others) if (row := _parsed(run, lines[place])) is not None}
    for place, row in rows.items():
        _put(columns, [place], {name: [value] for name, value in row.items()}, len(lines))
    forms.sort(key=lambda form: -len(by_form.get(form, ())))
    there = [place for place, step in enumerate(columns.get("step", ())) if step is not None]
    return {name: _tight([column[place] for place in there]) for name, column in columns.items()}


def _tight(column: list[Any]) -> Sequence[Any]:
    """Numbers of one type without their objects."""
    kinds = set(map(type, column))
    return _column(kinds.pop(), column) if len(kinds) == 1 else column


def _put(columns: dict[str, Any], places: Sequence[int], values: Mapping[str, Sequence[Any]], count: int) -> None:
    for name, found in values.items():
        column = columns.setdefault(name, [None] * count)
        for place, value in zip(places, found, strict=True):
            column[place] = value


def _learn(forms: list[_Form], line: bytes) -> None:
    """A form of which there will be more."""
    row = parse(line) if len(line) <= _MOST_BYTES_A_ROW else None
    numbers = _numbers(row)
    if row is not None and numbers == row and len(row) > 1 and "step" in row and len(forms) < _MOST_FORMS:
        new = _Form(row)
        if new.line.match(line) and new.items not in [form.items for form in forms]:
            forms.append(new)


def _parsed(run: RecordedRun, line: bytes) -> Row | None:
    """The numbers of a line; what is none is counted."""
    if not line.strip():
        return None
    row = parse(line) if len(line) <= _MOST_BYTES_A_ROW else None
    if row is None and not line.endswith(b"\n"):
        run.torn = True
        return None
    return _kept(run, row)


def parse(text: bytes | str) -> Any:
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


def _wandb(data: bytes) -> tuple[RecordedRun, Iterator[Any]]:
    run = RecordedRun("offline W&B run")

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


def _take_run(run: RecordedRun, message: bytes) -> None:
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
