"""Output: tables that no terminal is too narrow for, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from bridge.planning.quantities import plain

_WIDTH_IN_FILES = 120
_LEAST_TEXT = 24  # columns a text keeps beside numbers
_GAP = 2  # columns between two cells


class Output(Console):
    """Standard output; a file or a pipe, which has no width of its own, is as wide as COLUMNS says or a table needs."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        self.is_bounded = self.is_terminal or "COLUMNS" in os.environ
        if not self.is_bounded:
            self.width = _WIDTH_IN_FILES

    def on_broken_pipe(self) -> NoReturn:  # rich would exit with 1
        raise BrokenPipeError

    def show(self, table: Table) -> None:
        """Print a table in which no number is cut: where it is too wide for a terminal, its columns go below each other."""
        usual = self.width
        for number, part in enumerate(_parts(table, usual) if self.is_bounded else [table]):
            if number:
                self.print()
            self.width = max(usual, _width(part.columns))
            self.print(part)
            self.width = usual


def make_table(left: Sequence[str], right: Sequence[str] = (), texts: Sequence[str] = (), *, title: str = "") -> Table:
    """A table without lines: headings of names, then headings of numbers, then of texts that may take several lines."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    return table


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table, or tables of some of its columns each, which begin with its names."""
    if _width(table.columns) <= width:
        yield table
        return
    names = [column for column in table.columns if column.no_wrap and column.justify == "left"]
    if len(names) == len(table.columns):
        names = names[:1]
    groups = [names]
    for column in table.columns[len(names) :]:
        if groups[-1] != names and _width([*groups[-1], column]) > width:
            groups.append(names)
        groups[-1] = [*groups[-1], column]
    for number, columns in enumerate(groups):
        part = copy(table)
        part.title = None if number else table.title
        part.columns = [replace(column, _index=index) for index, column in enumerate(columns)]
        yield part


def _width(columns: Sequence[Column]) -> int:
    return sum(map(_least, columns)) + _GAP * (len(columns) - 1)


def _least(column: Column) -> int:
    """Characters that a column needs; a text breaks between its words."""
    cells = [str(column.header), *map(str, column.cells)]
    widest = max(map(cell_len, cells))
    if column.no_wrap or widest <= _LEAST_TEXT:
        return widest
    return max(_LEAST_TEXT, *(cell_len(word) for cell in cells for word in cell.split()))


#: Of what ``--json`` prints (docs/json.md); a change that readers would notice raises it.
JSON_VERSION = 1


def print_json(value: Any, *, versioned: bool = True) -> None:
    """One JSON value, each object with the ``version`` of its schema; numbers as ``plain`` makes them."""
    print(json.dumps(_with_version(value) if versioned else value, indent=2, default=plain))


def _with_version(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_version(one) for one in value]
    return {"version": JSON_VERSION, **value} if isinstance(value, dict) else value
