"""Output: tables as wide as their numbers need, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from bridge.planning.quantities import plain

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
