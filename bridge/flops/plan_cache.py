"""Plans of configurations used before: compiled once, reused while the configuration is unchanged.

A configuration object is recognized by identity, and its contents are compared with a copy on every call, so that changes are
noticed.  Each object takes one comparison: of its dictionary or, if it has many fields, of the values in their order and of the
last name (a renamed field moves to the end), which is a third faster: about a microsecond for a hundred fields.  Objects whose
fields cannot be compared in this way are read anew each time; only their compiled plan is reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Configurations remembered; a job has one, a planner compares a handful.
CAPACITY = 32


def _is_leaf(value: Any) -> bool:
    """Values that equality tells apart, or that say nothing about a model."""
    if value is None or isinstance(value, (bool, int, float, str, Enum, type, types.ModuleType, types.FunctionType)):
        return True
    return not isinstance(value, (Mapping, list, tuple)) and not hasattr(value, "__dict__")


def _fields(node: Any) -> dict[str, Any] | None:
    """The dictionary that holds everything an object or a mapping says; None where there is none that does."""
    if type(node) is dict:
        return node
    fields = getattr(node, "__dict__", None)
    if isinstance(node, Mapping) or type(fields) is not dict:
        return None
    if isinstance(node, (types.SimpleNamespace, argparse.Namespace)) or dataclasses.is_dataclass(node):
        return fields
    # Attributes of the class (defaults, properties) could change without a trace in the object.
    own = (name for kind in type(node).__mro__[:-1] for name, value in vars(kind).items() if not callable(value))
    return None if any(not name.startswith("__") for name in own) else fields


#: From this many fields on, values are compared without their names.
MANY = 32


class _Snapshot:
    """Copies of the dictionaries and lists reachable from a configuration, to compare with later."""

    #: More objects than this are not a configuration: it is read anew each time.
    LIMIT = 200

    def __init__(self, cfg: Any, parts: tuple[str, ...]):
        self.complete = True
        self.small: list[Any] = []
        """Dictionaries and lists."""
        self.copies: list[Any] = []
        """Of these."""
        self.large: list[tuple[dict[str, Any], Iterable[Any], list[Any], str]] = []
        """Dictionaries, their values, copies of these, and the last names."""
        self._seen: set[int] = set()
        fields = _fields(cfg)
        if fields is None:
            self.complete = False
        elif fields.get("model") is None:
            self._add(cfg)
        else:
            # Sections that a plan does not depend on are compared by identity only.
            self._keep(fields)
            for name in parts:
                self._add(fields.get(name))

    def _add(self, node: Any) -> None:
        if _is_leaf(node) or id(node) in self._seen or not self.complete:
            return
        self._seen.add(id(node))
        if isinstance(node, (list, tuple)):
            if isinstance(node, list):
                self._copy(node)
            children = list(node)
        else:
            fields = _fields(node)
            if fields is None or len(self._seen) > self.LIMIT:
                self.complete = False
                return
            self._keep(fields)
            children = list(fields.values())
        for child in children:
            self._add(child)

    def _keep(self, fields: dict[str, Any]) -> None:
        if len(fields) < MANY:
            self._copy(fields)
        else:
            self.large.append((fields, fields.values(), list(fields.values()), next(reversed(fields))))

    def _copy(self, node: Any) -> None:
        self.small.append(node)
        self.copies.append(node.copy())


_NOTHING: Any = object(), (), (), (), None


class PlanCache(Generic[T]):
    """The latest results of a function of one configuration object.

    Args:
        function: the costly function of a configuration.
        parts: the sections of a configuration that the result depends on.
    """

    def __init__(self, function: Callable[[Any], T], parts: tuple[str, ...] = ("model", "peft", "parallel", "teacher")):
        self._function = function
        self._parts = parts
        self._entries: OrderedDict[int, tuple[Any, list[Any], list[Any], list[Any], T]] = OrderedDict()

    def of(self, cfg: Any) -> T:
        """``function(cfg)``, remembered."""
        known, small, copies, large, result = self._entries.get(id(cfg), _NOTHING)
        if known is not cfg or small != copies:
            return self._renew(cfg)
        for fields, values, copy, last in large:
            if [*values] != copy or next(reversed(fields), None) != last:
                return self._renew(cfg)
        return result

    __call__ = of  # which takes a detour that is a tenth of the time

    def _renew(self, cfg: Any) -> T:
        result = self._function(cfg)
        snapshot = _Snapshot(cfg, self._parts)
        if snapshot.complete:
            self._entries[id(cfg)] = (cfg, snapshot.small, snapshot.copies, snapshot.large, result)
            self._entries.move_to_end(id(cfg))
            while len(self._entries) > CAPACITY:
                self._entries.popitem(last=False)
        return result
