"""A proxy of a training loop's data that reports each batch to an observer and behaves like the original otherwise.

A proxy has the special methods that the wrapped object's class has, and no others: ``len`` works only if it worked before, and a
generator is still a ``collections.abc.Generator``.  Attributes are read from and set on the wrapped object.  An iterable starts a
new pass for each ``iter``; an iterator returns itself.  A copy is a proxy of the copied object.  Pickling yields the wrapped
object, because another process will load it, where nothing is counted.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

from bridge.metrics import spans as marks
from bridge.metrics.spans import DATA, itself, waited

Observer = Callable[[Any, int], None]
"""Called with a batch and the nanoseconds that its loader took."""


def observed(data: Any, observer: Observer) -> Any:
    """A proxy of an iterator or an iterable.

    Raises:
        TypeError: it is neither.
    """
    kind = type(data)
    if not any(hasattr(kind, name) for name in ("__next__", "__iter__", "__getitem__")):
        raise TypeError(f"observe() takes an iterator or an iterable, not a {kind.__name__}")
    return _proxy_class(kind)(data, observer)  # type: ignore[arg-type]  # a class is hashable


def waited_seconds() -> float:
    """Seconds that this process has waited for observed batches."""
    return waited[0] / 1e9


def are_chunks(data: Any) -> bool:
    """Whether it is a list of iterators, one for each model chunk, as schedules of virtual pipelines take."""
    return isinstance(data, (list, tuple)) and bool(data) and all(one is None or hasattr(one, "__next__") for one in data)


class _Proxy:
    """Behaves like the wrapped object, and reports its batches."""

    __slots__ = ("__data", "__observer")
    __data: Any
    __observer: Observer

    def __init__(self, data: Any, observer: Observer) -> None:
        object.__setattr__(self, "_Proxy__data", data)
        object.__setattr__(self, "_Proxy__observer", observer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__data, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__data, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__data, name)

    def __dir__(self) -> list[str]:
        return dir(self.__data)

    def __copy__(self) -> Any:
        return observed(copy.copy(self.__data), self.__observer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return observed(copy.deepcopy(self.__data, memo), self.__observer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return itself, (self.__data,)

    def _tell(self, take: Callable[[Any], Any], argument: Any) -> Any:
        spans, before, start = marks.listener, waited[0], perf_counter_ns()
        if spans is None:
            batch = take(argument)
        else:
            spans.push(DATA)
            try:
                batch = take(argument)
            finally:
                spans.pop(DATA)
        took = perf_counter_ns() - start
        waited[0] = before + took  # includes what a proxy inside this one has added
        self.__observer(batch, took)
        return batch

    def _pass(self) -> Any:
        passing = iter(self.__data)
        return self if passing is self.__data else observed(passing, self.__observer)


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        data = self._Proxy__data
        result = getattr(type(data), name)(data, *arguments, **options)
        return self if result is data else result

    return method


def _next(self: Any) -> Any:
    return self._tell(next, self._Proxy__data)


def _send(self: Any, value: Any) -> Any:
    return self._tell(self._Proxy__data.send, value)


def _throw(self: Any, *error: Any) -> Any:
    return self._tell(lambda error: self._Proxy__data.throw(*error), error)


#: Methods that return batches, or iterators of them.
_TELLING: Mapping[str, Callable[..., Any]] = {
    "__next__": _next,
    "__iter__": lambda self: self._pass(),
    "send": _send,
    "throw": _throw,
}
#: Python looks these up on the class, so ``__getattr__`` cannot forward them.
_SPECIAL = (
    *("__len__", "__length_hint__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__reversed__"),
    *("__bool__", "__call__", "__enter__", "__exit__", "__repr__", "__str__", "__eq__", "__hash__", "__add__", "close"),
)


@functools.cache
def _proxy_class(kind: type) -> type[_Proxy]:
    methods = {name: _forwarded(name) for name in _SPECIAL if getattr(kind, name, None) is not None}
    methods |= {name: method for name, method in _TELLING.items() if hasattr(kind, name)}
    if "__iter__" not in methods and "__next__" not in methods:  # iterated by index
        methods["__iter__"] = _TELLING["__iter__"]
    return type(f"Observed{kind.__name__}", (_Proxy,), {"__slots__": (), "__doc__": kind.__doc__, **methods})
