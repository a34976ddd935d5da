"""Reads pickled rows without executing anything and without building all objects.

The reader knows the opcodes of lists, tuples, dictionaries, strings, numbers and numpy arrays.  It never looks up a class: a
pickle that names anything else is refused.  Runs of numbers and long strings, which make up nearly all of a packed file, stay in
the file and are decoded on demand, so a row costs a few hundred bytes, however many tokens it has.  (Rows cannot be dropped
entirely: a pickle may refer back to any earlier list.)
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

#: A run of numbers: ints of 1, 2 and 4 bytes, booleans, None, floats.  Possessive, so that matching never backtracks.
_NUMBERS = rb"(?:M..|J....|K.|[\x88\x89N]++|G.{8})++"
_RUN = re.compile(_NUMBERS, re.DOTALL)
#: The rest of a list of numbers, from its memo entry to its last opcode: five opcodes in one step, for speed only.
_LIST = re.compile(rb"(?:\x94|(q.)|r(.{4}))\((" + _NUMBERS + rb")e", re.DOTALL)

#: Strings and bytes up to this size are decoded at once: names of fields, data types, numpy scalars.
_SHORT = 64

_STOP = pickle.STOP[0]

Data = Any  # bytes or an mmap


class _Run:
    """Consecutive numbers in the file."""

    __slots__ = ("data", "start", "end")

    def __init__(self, data: Data, start: int, end: int):
        self.data, self.start, self.end = data, start, end

    def decode(self) -> list[Any]:
        return _decode(self.data, self.start, self.end)


def _decode(data: Data, start: int, end: int) -> list[Any]:
    # Safe: the standard unpickler only sees numbers here, in a list that we build.
    numbers: list[Any] = pickle.loads(b"\x80\x02](" + data[start:end] + b"e.")
    return numbers


class Blob:
    """A long string, or the content of an array, in the file."""

    __slots__ = ("data", "start", "end")

    def __init__(self, data: Data, start: int, end: int):
        self.data, self.start, self.end = data, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def decode(self) -> bytes:
        """Its bytes."""
        content: bytes = self.data[self.start : self.end]
        return content


def _expand(items: list[Any]) -> list[Any]:
    """The items with every run of numbers spelled out."""
    if not any(type(item) is _Run for item in items):
        return items
    return [value for item in items for value in (item.decode() if type(item) is _Run else (item,))]


class List:
    """A pickled list: a first run of numbers, which is often the whole list, and the other items."""

    __slots__ = ("data", "start", "end", "others")

    def __init__(self, data: Data = b"", start: int = 0, end: int = 0):
        self.data, self.start, self.end = data, start, end
        self.others: list[Any] | None = None

    def extend(self, items: list[Any]) -> None:
        """Add items and runs of numbers."""
        if self.others is None:
            self.others = []
        self.others.extend(items)

    def values(self) -> list[Any]:
        """The items."""
        first = _decode(self.data, self.start, self.end) if self.end else []
        return first + _expand(self.others) if self.others else first

    def __len__(self) -> int:
        first = len(_decode(self.data, self.start, self.end)) if self.end else 0
        return first + sum(len(part.decode()) if type(part) is _Run else 1 for part in self.others or ())


class _DataType:
    """A numpy dtype under construction: pickles name it first and give its byte order later."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not re.fullmatch(r"O8|O4|b1|[iuf][1248]", code):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, but only integers, floats and booleans are read")
        self.dtype = np.dtype(code)

    def build(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """A pickled numpy array."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.content: Any = b""
        self.dtype = np.dtype(np.int64)

    def build(self, state: tuple[Any, ...]) -> None:
        _, self.shape, data_type, _, self.content = state
        self.dtype = data_type.dtype

    @classmethod
    def from_buffer(cls, content: Any, data_type: _DataType, shape: tuple[int, ...], _order: str) -> Array:
        """An array as protocol 5 pickles it."""
        array = cls()
        array.build((1, shape, data_type, False, content))
        return array

    def __len__(self) -> int:
        length = self.shape[0] if len(self.shape) == 1 else -1
        held = len(self.content) if self.dtype.hasobject else len(self.content) // self.dtype.itemsize
        if length != held:
            raise pickle.UnpicklingError(f"it holds an array of shape {self.shape} with {held} values")
        return length

    def values(self) -> Any:
        """The items: a list of objects, or a numpy array of numbers."""
        if self.dtype.hasobject:
            return self.content.values()
        content = self.content.decode() if isinstance(self.content, Blob) else self.content
        return np.frombuffer(content, self.dtype, count=len(self))


def _scalar(data_type: _DataType, content: bytes) -> Any:
    return np.frombuffer(content, data_type.dtype)[0].item()


#: Every function that a pickle may name -> what is called instead.
_FUNCTIONS: dict[tuple[Any, Any], Any] = {("numpy", "ndarray"): None, ("numpy", "dtype"): _DataType}
for _package in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_package}.multiarray", "_reconstruct"] = Array
    _FUNCTIONS[f"{_package}.multiarray", "scalar"] = _scalar
    _FUNCTIONS[f"{_package}.numeric", "_frombuffer"] = Array.from_buffer


class RowReader:
    """Reads the pickle of an array of objects, a batch of them at a time.

    Args:
        data: bytes or an mmap.
        position: the byte at which the pickle begins.
    """

    def __init__(self, data: Data, position: int = 0):
        self.data = data
        self.position = position
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._rows: List | None = None

    def batches(self) -> Iterator[list[Any]]:
        """The rows of the array, in order: dictionaries whose values are ``List``, ``Array``, ``Blob`` or numbers.

        Raises:
            pickle.UnpicklingError: the pickle is damaged, or holds something that is not plain data.
        """
        data = self.data
        while True:
            try:
                opcode = data[self.position]
                self.position += 1
                if opcode == _STOP:
                    return
                action = _ACTIONS.get(opcode)
                if action is None:
                    raise pickle.UnpicklingError(f"it holds more than plain data: pickle opcode {bytes([opcode])!r}")
                action(self)
            except (IndexError, KeyError, TypeError, AttributeError) as error:
                reason = "torn" if self.position >= len(self.data) else "damaged"
                raise pickle.UnpicklingError(f"the pickle in it is {reason} at byte {self.position}") from error
            if self._rows is not None and self._rows.others:
                rows, self._rows.others = self._rows.others, None
                yield _expand(rows)

    # ---- the stack -------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        taken: bytes = self.data[start : self.position]
        if len(taken) < size:
            raise pickle.UnpicklingError(f"the pickle in it is truncated at byte {len(self.data)}")
        return taken

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _pop(self) -> Any:
        top = self._stack.pop()
        if type(top) is _Run:
            *others, top = top.decode()
            self._stack.extend(others)
        return top

    def _pop_marked(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    # ---- opcodes ---------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _numbers(self) -> None:
        start = self.position - 1
        run = _RUN.match(self.data, start)
        if run is None:
            raise IndexError
        self.position = run.end()
        self._stack.append(_Run(self.data, start, self.position))

    def _long(self, size: int) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(size)), "little", signed=True))

    def _string(self, size: int, is_text: bool) -> None:
        length = self._number(size)
        if length <= _SHORT:
            content = self._take(length)
            self._stack.append(content.decode("utf-8", "surrogatepass") if is_text else content)
            return
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise IndexError
        self._stack.append(Blob(self.data, start, self.position))

    def _empty_list(self) -> None:
        if self._rows is None:  # the first list of all is the content of the array
            self._rows = List()
            self._stack.append(self._rows)
            return
        found = _LIST.match(self.data, self.position)
        if found is None:
            self._stack.append(List())
            return
        made = List(self.data, found.start(3), found.end(3))
        short, long = found.group(1, 2)
        self._stack.append(made)
        self._remember(short[1] if short else int.from_bytes(long, "little") if long else len(self._memo))
        self.position = found.end()

    def _append(self) -> None:
        item = self._pop()
        self._stack[-1].extend([item])

    def _appends(self) -> None:
        items = self._pop_marked()
        self._stack[-1].extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._stack[-1][key] = value

    def _set_items(self) -> None:
        items = _expand(self._pop_marked())
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _tuple(self) -> None:
        self._stack.append(tuple(_expand(self._pop_marked())))

    def _short_tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def _remember(self, index: int) -> None:
        if index == len(self._memo):  # every pickler counts upwards
            self._memo.append(self._stack[-1])
        else:
            self._memo[index] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def _put(self, size: int) -> None:
        self._remember(self._number(size))

    def _short_get(self) -> None:
        self._stack.append(self._memo[self.data[self.position]])
        self.position += 1

    def _long_get(self) -> None:
        self._stack.append(self._memo[self._number(4)])

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise IndexError
        line = self._take(end - self.position).decode()
        self._take(1)
        return line

    def _global(self) -> None:
        self._function(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._function(module, name)

    def _function(self, module: Any, name: Any) -> None:
        if (module, name) not in _FUNCTIONS:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, but only lists, dictionaries, numbers and numpy arrays are read"
            )
        self._stack.append(_FUNCTIONS[module, name])

    def _reduce(self) -> None:
        arguments = self._pop()
        self._stack.append(self._pop()(*arguments))

    def _build(self) -> None:
        state = self._pop()
        self._stack[-1].build(state)


def _with(method: Callable[..., object], *arguments: Any) -> Callable[[RowReader], object]:
    return lambda reader: method(reader, *arguments)


_R = RowReader
_ACTIONS: dict[int, Callable[[RowReader], object]] = {
    opcode[0]: action
    for opcode, action in {
        pickle.PROTO: _with(_R._take, 1),
        pickle.FRAME: _with(_R._take, 8),
        pickle.MARK: _R._mark,
        **dict.fromkeys((pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT), _R._numbers),
        **dict.fromkeys((pickle.NEWTRUE, pickle.NEWFALSE, pickle.NONE), _R._numbers),
        pickle.LONG1: _with(_R._long, 1),
        pickle.LONG4: _with(_R._long, 4),
        pickle.SHORT_BINUNICODE: _with(_R._string, 1, True),
        pickle.BINUNICODE: _with(_R._string, 4, True),
        pickle.BINUNICODE8: _with(_R._string, 8, True),
        pickle.SHORT_BINBYTES: _with(_R._string, 1, False),
        pickle.BINBYTES: _with(_R._string, 4, False),
        pickle.BINBYTES8: _with(_R._string, 8, False),
        pickle.BYTEARRAY8: _with(_R._string, 8, False),
        pickle.EMPTY_LIST: _R._empty_list,
        pickle.APPEND: _R._append,
        pickle.APPENDS: _R._appends,
        pickle.EMPTY_DICT: lambda reader: reader._stack.append({}),
        pickle.SETITEM: _R._set_item,
        pickle.SETITEMS: _R._set_items,
        pickle.EMPTY_TUPLE: lambda reader: reader._stack.append(()),
        pickle.TUPLE: _R._tuple,
        pickle.TUPLE1: _with(_R._short_tuple, 1),
        pickle.TUPLE2: _with(_R._short_tuple, 2),
        pickle.TUPLE3: _with(_R._short_tuple, 3),
        pickle.MEMOIZE: _R._memoize,
        pickle.BINPUT: _with(_R._put, 1),
        pickle.LONG_BINPUT: _with(_R._put, 4),
        pickle.BINGET: _R._short_get,
        pickle.LONG_BINGET: _R._long_get,
        pickle.GLOBAL: _R._global,
        pickle.STACK_GLOBAL: _R._stack_global,
        pickle.REDUCE: _R._reduce,
        pickle.BUILD: _R._build,
    }.items()
}
