"""What every benchmark gives: rows of name, value, unit and, where there is one, the target.

A benchmark is a module with a function ``rows()`` that yields them, or raises ``Unavailable`` with the reason.
"""

from __future__ import annotations

import importlib
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Unavailable(Exception):
    """The benchmark cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure, in ``unit``; less is better where there is a target.
        target: what it should stay below; None: there is none.
        note: how far the figure can be trusted, or what it stands for.
        guard: of a figure that no load disturbs: more than this is a failure.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""
    guard: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.value < self.target


def microseconds(call: Callable[[], Any], number: int = 50, repeat: int = 2000) -> float:
    """The fastest of many short bursts: shorter than a time slice, so some are undisturbed on a busy machine."""
    return min(timeit.repeat(call, number=number, repeat=repeat)) / number * 1e6


def collect(name: str) -> list[Row] | str:
    """The rows of a benchmark, or why there are none."""
    try:
        return list(importlib.import_module(f"benchmarks.{name}").rows())
    except Unavailable as reason:
        return str(reason)
