"""Converts values to what trackers can store: numbers, strings, lists and mappings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = (int, str, bool, type(None))


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers, strings, lists and mappings; NaN and infinities become strings.

    Integers of any size stay integers: Python's JSON reads them back exactly.
    """
    kind = type(value)
    if kind in _PLAIN or (kind is float and math.isfinite(value)):  # nearly all values
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (int, float, str)):
        return value
    if _is_single(value):
        return plain(value.item())
    return str(value)


def doubles(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row as doubles, as MLflow stores them; other values are left out.

    Integers above 2^53 become the nearest double: 16 digits are correct.
    """
    items = ((key, value.item() if _is_single(value) else value) for key, value in metrics.items())
    return {str(key): float(value) for key, value in items if isinstance(value, (bool, int, float))}


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options with dotted names: ``model.num_layers``."""
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_single(value: Any) -> bool:
    """Whether it is an array or a tensor of one number."""
    if not hasattr(value, "item"):
        return False
    size = value.numel() if hasattr(value, "numel") else getattr(value, "size", None)
    return size == 1
