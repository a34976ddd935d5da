"""Output for people: tables as wide as they need to be, and large numbers with a prefix."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from bridge.planning.training_run import Range

_SI = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_COUNTS = ("", " thousand", " million", " billion", " trillion")
_WIDTH_IN_FILES = 120
_LEAST_TEXT = 40  # columns a text keeps beside numbers


class Output(Console):
    """Standard output; wide where it is a file or a pipe, which have no width of their own."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = _WIDTH_IN_FILES

    def on_broken_pipe(self) -> NoReturn:  # rich would exit with 1
        raise BrokenPipeError

    def show(self, table: Table) -> None:
        """Print a table as wide as its numbers need: a narrow terminal breaks lines, but no number loses digits."""
        needed = Measurement.get(self, self.options.update(width=10**4), table).maximum
        for column in table.columns:
            if not column.no_wrap:
                widest = max(cell_len(str(cell)) for cell in column.cells)
                needed -= max(widest - _LEAST_TEXT, 0)
        usual, self.width = self.width, max(self.width, needed)
        self.print(table)
        self.width = usual


def make_table(left: Sequence[str], right: Sequence[str] = (), *, title: str = "") -> Table:
    """A table without lines: headings of texts, then headings of numbers."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


#: Of what ``--json`` prints (docs/json.md); a change that readers would notice raises it.
JSON_VERSION = 1


def print_json(value: Any, *, versioned: bool = True) -> None:
    """One JSON value, each object with the ``version`` of its schema; numbers as ``plain`` makes them."""
    print(json.dumps(_with_version(value) if versioned else value, indent=2, default=plain))


def _with_version(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_version(one) for one in value]
    return {"version": JSON_VERSION, **value} if isinstance(value, dict) else value


# ---- numbers --------------------------------------------------------------------------------------------------------


def plain(value: int | float | Fraction | Range | None) -> int | float | list[Any] | None:
    """A number as JSON has it: an integer wherever it is one; a range as its two ends."""
    if isinstance(value, Range):
        return plain(value.low) if value.is_known else [plain(value.low), plain(value.high)]
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def exactly(value: int | float | Fraction) -> str:
    """All digits of a whole number, three decimals of another."""
    whole = plain(value)
    return f"{whole:,}" if isinstance(whole, int) else f"{whole:,.3f}"


def with_unit(value: int | float | Fraction, unit: str) -> str:
    """Four digits and an SI prefix: ``421.6 TFLOP``."""
    number, step = _reduced(value, len(_SI))
    return f"{number:.4g} {_SI[step]}{unit}"


def in_words(value: int | float | Fraction) -> str:
    """Three digits and a word: ``8.03 billion``."""
    number, step = _reduced(value, len(_COUNTS))
    return f"{number:.3g}{_COUNTS[step]}"


def count(number: int, singular: str, plural: str = "") -> str:
    """``1 sequence``, ``4,096 tokens``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def spread(value: Range | int | float | Fraction, show: Callable[[Any], str]) -> str:
    """A number, or both ends of a range: ``12.3 days to 15.8 days``."""
    ends = Range.of(value)
    low, high = show(ends.low), show(ends.high)
    return low if low == high else f"{low} to {high}"


def _reduced(value: int | float | Fraction, steps: int) -> tuple[float, int]:
    number, step = float(value), 0
    while abs(number) >= 999.95 and step < steps - 1:
        number /= 1000
        step += 1
    return number, step
