"""Quantities as people write them: ``15T``, ``0.35-0.45``, ``40%``, ``$2.5``, ``4k``, ``400TFLOP/s``, ``700W``, ``3.35TB/s``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bridge.flops.shapes import ConfigError, short
from bridge.planning.training_run import Range

_SUFFIXES = {"": 0, "k": 3, "M": 6, "G": 9, "B": 9, "T": 12, "P": 15, "E": 18}
_AMOUNT = re.compile(r"(\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?([kMGBTPE]?)")
#: A number or a range: the first of the pattern's eight groups is the one end, the fifth the other.
RANGE = rf"({_AMOUNT.pattern})(?:-({_AMOUNT.pattern}))?"
#: Spellings of units -> what they are called here.
_UNITS = {unit: unit for unit in ("", "%", "$", "W", "s", "B/s")} | dict.fromkeys(
    ("FLOP/s", "FLOPs/s", "FLOPS", "FLOPs", "FLOP"), "FLOP/s"
)
_QUANTITY = re.compile(rf"(\$?){RANGE}\s?({'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})")
_SPACE = re.compile(r"(?<=\d)\s+(?=[kMGTPE]?(?:FLOP|W|B/s)|%)")
#: Largest power of ten, and longest number: far beyond any use, and far below what a float cannot hold.
_LARGEST, _LONGEST = 40, 60
#: Tokens that letters stand for in a length: 128k is 131,072.
_LENGTH = re.compile(r"(\d+)([kM]?)")
_BINARY = {"": 1, "k": 1024, "M": 1024**2}


@dataclass(frozen=True)
class Quantity:
    """A quantity with its unit.

    Attributes:
        value: in the unit without prefixes; a percentage as the fraction that it is.
        unit: ``""``, ``%``, ``$``, ``FLOP/s``, ``B/s``, ``W`` or ``s``.
        rounding: half a unit of the last digit that was written.
    """

    value: Range
    unit: str = ""
    rounding: Fraction = Fraction(0)

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """A quantity from text; ConfigError where it is none.

        >>> Quantity.parse("400TFLOP/s").number, Quantity.parse("41.5%").number
        (400000000000000, Fraction(83, 200))
        """
        found = _QUANTITY.fullmatch(_SPACE.sub("", text.strip()))
        dollars, *numbers, unit = found.groups() if found else ("", "")
        if found is None or (dollars and unit):
            raise ConfigError(
                f"{short(text)} must be a number such as 0.4, 40%, 1024, 15T, 1e24, 400TFLOP/s or $2.5, "
                "or a range such as 0.35-0.45"
            )
        unit, first, last = "$" if dollars else _UNITS[unit], numbers[0], numbers[4] or numbers[0]
        if any(len(number) > _LONGEST or abs(_parts(number)[1]) > _LARGEST for number in (first, last)):
            raise ConfigError(f"{short(text)} is beyond what is planned here: powers of ten go to {_LARGEST}")
        part = Fraction(1, 100) if unit == "%" else Fraction(1)
        ends = Range(_plain(_amount(first) * part), _plain(_amount(last) * part))
        return cls(ends, unit, _last_digit(first) / 2 * part)

    @classmethod
    def of(cls, number: int | float | Fraction) -> Quantity:
        """A number without a unit, to all its digits."""
        return cls(Range.of(number))

    @property
    def number(self) -> int | Fraction:
        """The one value; ConfigError where it is a range."""
        if not self.value.is_known:
            raise ConfigError(f"{float(self.value.low):g}-{float(self.value.high):g} must be one number")
        return _plain(Fraction(self.value.low))


def positive(text: str, unit: str = "") -> Range:
    """A number or a range above zero, alone or in a unit; ConfigError where it is none.

    >>> positive("0.35-0.45")
    Range(low=Fraction(7, 20), high=Fraction(9, 20))
    """
    found = Quantity.parse(text)
    if found.value.low <= 0:
        raise ConfigError(f"{short(text)} must be above zero")
    if found.unit not in ("", unit):
        raise ConfigError(f"{short(text)} must be a number without a unit" + (f" or in {unit}" if unit else ""))
    return found.value


def single(text: str, unit: str = "") -> float:
    """One number above zero, alone or in a unit.

    >>> single("989.4TFLOP/s", "FLOP/s")
    989400000000000.0
    """
    value = positive(text, unit)
    if not value.is_known:
        raise ConfigError(f"{short(text)} must be one number")
    return float(value.low)


def whole(text: str) -> int:
    """A count: ``512``, ``1,024``, ``2k`` (2,000); ConfigError where it is no positive whole number."""
    try:
        found = Quantity.parse(text)
        number = found.number if found.unit == "" else 0
    except ConfigError:
        number = 0
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"{short(text)} must be a positive integer")
    return number


def length(text: str) -> int:
    """Tokens: ``4096``, ``4k`` (4,096), ``1M`` (1,048,576); ConfigError where it is no positive whole number.

    >>> length("128k")
    131072
    """
    found = _LENGTH.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise ConfigError(f"{short(text)} must be a positive integer, or one with k or M such as 128k (131,072)")
    return int(found[1]) * _BINARY[found[2]]


def plain(value: int | float | Fraction | Range | None) -> int | float | list[Any] | None:
    """A number as JSON has it: an integer wherever it is one; a range as its two ends."""
    if isinstance(value, Range):
        return plain(value.low) if value.is_known else [plain(value.low), plain(value.high)]
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def spread(value: Range | int | float | Fraction, show: Callable[[Any], str]) -> str:
    """A number, or both ends of a range: ``12.3 days to 15.8 days``."""
    ends = Range.of(value)
    low, high = show(ends.low), show(ends.high)
    return low if low == high else f"{low} to {high}"


def _amount(text: str) -> Fraction:
    """Exactly what was written: 0.1 is a tenth, 15T an integer."""
    digits, exponent, suffix = _parts(text)
    return Fraction(digits) * Fraction(10) ** (exponent + _SUFFIXES[suffix])


def _last_digit(text: str) -> Fraction:
    digits, exponent, suffix = _parts(text)
    return Fraction(10) ** (exponent + _SUFFIXES[suffix] - len(digits.partition(".")[2]))


def _parts(text: str) -> tuple[str, int, str]:
    match = _AMOUNT.fullmatch(text)
    assert match is not None  # the caller has matched it
    return match[1].replace(",", ""), int(match[2] or 0), match[3]


def _plain(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value
