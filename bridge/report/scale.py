"""Readable axes: round ticks, and units in which numbers are short."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bridge.text import PREFIXES, significant

#: Logged units that are shown with an SI prefix, in counts with a space behind it; other units are shown as they are.
_PREFIXED = {"FLOP", "TFLOP/s", "FLOP/J", "J", "W"}
_COUNTED = {"tokens", "tokens/s", "sequences", "sequences/s"}


@dataclass(frozen=True)
class UnitScale:
    """How numbers of a unit are shown: multiplied by ``factor`` and followed by ``unit``."""

    factor: float
    unit: str

    def text(self, value: float) -> str:
        """Four digits and the unit."""
        number = significant(value * self.factor)
        return number + self.unit if self.unit == "%" else f"{number} {self.unit}".rstrip()


def scale_of(unit: str, largest: float) -> UnitScale:
    """The unit in which the largest number has one to three digits before the point."""
    if unit == "fraction":
        return UnitScale(100.0, "%")
    if unit.split("/")[0] == "s" and largest < 1:
        return UnitScale(1e3, f"m{unit}")
    if unit in _PREFIXED or unit in _COUNTED:
        name, size = ("FLOP/s", 1e12) if unit == "TFLOP/s" else (unit, 1.0)
        step = max(0, min(len(PREFIXES) - 1, int(math.log10(largest * size) / 3 + 1e-9))) if largest > 0 else 0
        prefix = PREFIXES[step]
        return UnitScale(size / 1000.0**step, f"{prefix} {name}".strip() if unit in _COUNTED else f"{prefix}{name}")
    return UnitScale(1.0, "" if unit in ("1", "ratio", "index") else unit)


def ticks(low: float, high: float, *, outside: bool = False, whole: bool = False) -> list[float]:
    """Round numbers from low to high; their distance is 1, 2, 2.5 or 5 times a power of ten.

    Args:
        low, high: the ends; if they are equal, low is the only tick.
        outside: whether the first and the last tick enclose the ends.
        whole: whether all ticks are whole numbers.
    """
    if not high > low:
        return [low]
    rough = (high - low) / 5  # about five intervals
    power = 10.0 ** math.floor(math.log10(rough))
    sizes = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(size * power for size in sizes if size * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = round(low / step, 9), round(high / step, 9)
    if outside:
        begin = math.floor(first)
        return [i * step for i in range(begin, max(math.ceil(last), begin + 1) + 1)]
    return [i * step for i in range(math.ceil(first), math.floor(last) + 1)]


def tick_text(value: float) -> str:
    """A tick: ``2,500``, ``50k``, without noise in its last digits."""
    for step in range(min(len(PREFIXES) - 1, 6), 0, -1):
        if abs(value) >= 10 * 1000.0**step:
            return significant(value / 1000.0**step, 6) + PREFIXES[step]
    return significant(value, 6)
