"""Output for people: tables as wide as they need to be, and large numbers with a prefix."""

from __future__ import annotations

from fractions import Fraction
from typing import NoReturn

from rich.console import Console

_SI = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_COUNTS = ("", " thousand", " million", " billion", " trillion")
_WIDTH_IN_FILES = 120


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:  # rich would exit with 1
        raise BrokenPipeError


def make_console() -> Console:
    """Standard output; wide where it is a file or a pipe, which have no width of their own."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=_WIDTH_IN_FILES)


def with_unit(value: int | float | Fraction, unit: str) -> str:
    """Four digits and an SI prefix: ``421.6 TFLOP``."""
    number, step = _reduced(value, len(_SI))
    return f"{number:.4g} {_SI[step]}{unit}"


def in_words(value: int) -> str:
    """Three digits and a word: ``8.03 billion``."""
    number, step = _reduced(value, len(_COUNTS))
    return f"{number:.3g}{_COUNTS[step]}"


def _reduced(value: int | float | Fraction, steps: int) -> tuple[float, int]:
    number, step = float(value), 0
    while abs(number) >= 999.95 and step < steps - 1:
        number /= 1000
        step += 1
    return number, step
