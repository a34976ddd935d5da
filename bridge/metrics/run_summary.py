"""The numbers of a whole run, computed from its rows for summaries and final tables, since its last row is arbitrary."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from bridge.metrics.time_parts import PARTS
from bridge.metrics.why import PREFIX

_FRACTION = "throughput/time_fraction/"
#: Amounts per interval are added up; totals and flags are taken from the last row; for all other keys the median is used.
_ADDED = (
    *("throughput/flops/", "throughput/statistics/", "throughput/energy"),
    *("throughput/unlearned_tokens", "throughput/unread_micro_batches"),
)
_LAST = ("throughput/total_", "throughput/incomplete", "throughput/doubtful", "throughput/compute_time/slowest")

_TYPICAL = ("throughput/",)


@functools.cache
def _kind(key: str) -> tuple[str, ...] | None:
    return next((prefixes for prefixes in (_ADDED, _LAST, _TYPICAL) if key.startswith(prefixes)), None)


class RunSummary:
    """Summarizes rows one by one, without keeping them."""

    def __init__(self) -> None:
        self._values: dict[str, array[float]] = {}
        self._exact: dict[str, int | float] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row."""
        for key, value in row.items():
            kind = _kind(key)
            if kind is _ADDED:
                self._exact[key] = self._exact.get(key, 0) + value
            elif kind is _LAST:
                self._exact[key] = value
            elif kind is _TYPICAL:
                self._values.setdefault(key, array("d")).append(value)

    def values(self) -> dict[str, int | float]:
        """Medians, sums and totals by key. The parts of a step are means, so that they add up."""
        medians = {key: median(values) for key, values in self._values.items() if not key.startswith((PREFIX, _FRACTION))}
        parts = self.parts()
        step = sum(parts.values())
        times = {PREFIX + name: seconds for name, seconds in parts.items()}
        fractions = {_FRACTION + name: seconds / step for name, seconds in parts.items()} if step > 0 else {}
        return {**self._exact, **medians, **times, **fractions}

    def parts(self) -> dict[str, float]:
        """Seconds of a mean step by part."""
        found = {name: self._values[PREFIX + name] for name in PARTS if PREFIX + name in self._values}
        rows = max(map(len, found.values()), default=0)
        return {name: fmean(values) for name, values in found.items() if len(values) == rows}
