"""Plans of configurations used before: compiled once, reused while the configuration is unchanged.

A configuration object is recognised by identity, and its contents are compared with a copy on every call, so a change is
noticed.  The comparison is one dictionary equality per object (fields that did not change are the same objects), about a
microsecond for a few dozen fields.  Objects whose fields cannot be compared that way are read anew each time, and only
the compiled plan is reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
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


class _Snapshot:
    """Copies of the dictionaries and lists reachable from a configuration, to compare with later."""

    #: More objects than this are not a configuration: it is read anew each time.
    LIMIT = 200

    def __init__(self, root: Any):
        self.complete = True
        self._seen: set[int] = set()
        self._pairs: list[tuple[Any, Any]] = []
        self._add(root)

    def _add(self, node: Any) -> None:
        if _is_leaf(node) or id(node) in self._seen or not self.complete:
            return
        self._seen.add(id(node))
        if isinstance(node, (list, tuple)):
            if isinstance(node, list):
                self._pairs.append((node, list(node)))
            children = list(node)
        else:
            fields = _fields(node)
            if fields is None or len(self._seen) > self.LIMIT:
                self.complete = False
                return
            self._pairs.append((fields, dict(fields)))
            children = list(fields.values())
        for child in children:
            self._add(child)

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        return all(live == copy for live, copy in self._pairs)


class PlanCache(Generic[T]):
    """The latest results of a function of one configuration object.

    Args:
        function: the costly function of a configuration.
        parts: the parts of a configuration it depends on, by name, beside ``model``.
    """

    def __init__(self, function: Callable[[Any], T], parts: tuple[str, ...] = ("peft", "parallel")):
        self._function = function
        self._parts = parts
        self._entries: OrderedDict[int, tuple[Any, tuple[Any, ...], _Snapshot, T]] = OrderedDict()

    def __call__(self, cfg: Any) -> T:
        """``function(cfg)``, remembered."""
        key = id(cfg)
        entry = self._entries.get(key)
        if entry is not None and entry[0] is cfg and self._roots(cfg) == entry[1] and entry[2].holds():
            return entry[3]
        result = self._function(cfg)
        roots = self._roots(cfg)
        snapshot = _Snapshot(roots)
        if snapshot.complete:
            self._entries[key] = (cfg, roots, snapshot, result)
            self._entries.move_to_end(key)
            while len(self._entries) > CAPACITY:
                self._entries.popitem(last=False)
        return result

    def _roots(self, cfg: Any) -> tuple[Any, ...]:
        get = cfg.get if isinstance(cfg, Mapping) else None
        model = get("model") if get else getattr(cfg, "model", None)
        if model is None:
            return (cfg,)
        return (model, *((get(name) if get else getattr(cfg, name, None)) for name in self._parts))
