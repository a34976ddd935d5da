"""Numbers and units for people: the only formatter."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

Number = int | float | Fraction

#: SI prefixes, each a thousand times the one before.
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
_COUNTS = ("", " thousand", " million", " billion", " trillion")
_GIB = 2**30


def significant(value: Number, digits: int = 4) -> str:
    """At most this many significant digits: ``1,235,000``, ``0.03497``; powers of ten only below 0.0001 and from 1e16 on."""
    rounded = float(f"{float(value):.{digits - 1}e}")
    if not math.isfinite(rounded) or not 1e-4 <= abs(rounded) < 1e16:
        return f"{rounded:.{digits}g}"
    text = f"{Decimal(repr(rounded)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def exactly(value: Number) -> str:
    """All digits of a whole number, three decimals of another."""
    if isinstance(value, Fraction) and value.denominator == 1:
        value = value.numerator
    return f"{value:,}" if isinstance(value, int) else f"{float(value):,.3f}"


def digits_of(value: int | float, digits: int = 5) -> str:
    """All digits of an integer, so many of another number."""
    return f"{value:,}" if isinstance(value, int) else significant(value, digits)


def with_unit(value: Number, unit: str = "", digits: int = 4) -> str:
    """An SI prefix before the unit: ``421.6 TFLOP``; ``1.23 M`` without one."""
    number, prefix = _reduced(value, PREFIXES, digits)
    return f"{number} {prefix}{unit}".rstrip()


def in_words(value: Number) -> str:
    """Three digits and a word: ``8.03 billion``."""
    number, word = _reduced(value, _COUNTS, 3)
    return number + word


def count(number: int, singular: str, plural: str = "") -> str:
    """``1 sequence``, ``4,096 tokens``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def percent(value: Number, decimals: int = 1) -> str:
    """A fraction as ``37.4%``."""
    return f"{float(value):,.{decimals}%}"


def gib(size: Number, decimals: int = 1) -> str:
    """Bytes as ``74.5 GiB``."""
    return f"{float(size) / _GIB:,.{decimals}f} GiB"


def seconds(value: float, digits: int = 3) -> str:
    """A time below a second in milliseconds: ``346 ms``, ``1.4 s``."""
    whole = abs(float(f"{value:.{digits - 1}e}")) >= 1
    return f"{significant(value, digits)} s" if whole else f"{significant(1e3 * value, digits)} ms"


def duration(value: float) -> str:
    """Seconds as a clock shows them: 3725 is ``1:02:05``."""
    minutes, second = divmod(int(max(value, 0) + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def shortened(text: str, most: int) -> str:
    """A text of at most this many characters: beginning and end of a longer one."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def _reduced(value: Number, steps: tuple[str, ...], digits: int) -> tuple[str, str]:
    """The number in the largest step in which it is at least one, after rounding."""
    number = float(f"{float(value):.{digits - 1}e}")
    if not math.isfinite(number):
        return f"{number}", ""
    step = 0 if not number else min(len(steps) - 1, max(0, math.floor(math.log10(abs(number)) / 3 + 1e-12)))
    return significant(number / 1000.0**step, digits), steps[step]
