"""What a page shows: numbers, figures and a table, as plain values that :mod:`bridge.report.html` turns into HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge.planning.quantities import plain
from bridge.text import with_unit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: How columns of FLOPs and of bytes show a value.
in_flop, in_bytes = partial(with_unit, unit="FLOP"), partial(with_unit, unit="B")


@dataclass(frozen=True)
class Card:
    """One number of the headline.

    Attributes:
        key: its name in exported files.
        label: its name on the page.
        value: the number itself, with all digits.
        text: the number as shown.
        detail: the line below it.
    """

    key: str
    label: str
    value: Any
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of values, which are rounded on the page but not when they are copied.

    Attributes:
        columns: the columns, from left to right.
        rows: values in the order of the columns.
        title: the caption.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    title: str = ""

    def as_csv(self) -> str:
        """Comma-separated values; the first line has the names."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.key for column in self.columns)
        writer.writerows([plain(value) for value in row] for row in self.rows)
        return file.getvalue()

    def as_records(self) -> list[dict[str, Any]]:
        """One mapping per row."""
        return [{c.key: plain(value) for c, value in zip(self.columns, row, strict=True)} for row in self.rows]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in exported files.
        heading: its name on the page.
        show: formats a value; None: ``str``.
    """

    key: str
    heading: str
    show: Any = None

    def text(self, value: Any) -> str:
        """The text of a cell; empty if there is no value."""
        if value is None:
            return ""
        return str(value) if self.show is None else str(self.show(value))


@dataclass(frozen=True)
class View:
    """A tab's contents for one set of inputs.

    Attributes:
        facts: the headline numbers.
        figures: the figures in order; None where there is nothing to draw.
        table: the values behind the figures.
        notes: sentences about what the numbers leave out or what is unusual about the inputs.
        inputs: the inputs, for the exported JSON.
    """

    facts: Sequence[Card]
    figures: Sequence[Figure | None]
    table: Table
    notes: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Inputs, facts, rows and notes as JSON; integers keep all their digits."""
        whole = {
            "inputs": dict(self.inputs),
            "facts": {fact.key: plain(fact.value) for fact in self.facts},
            "rows": self.table.as_records(),
            "notes": list(self.notes),
        }
        return json.dumps(whole, indent=2)
