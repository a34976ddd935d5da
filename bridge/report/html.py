"""Numbers, remarks and tables as HTML.  Every text is escaped, because a run's file and its names may be untrusted."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from bridge.planning.quantities import plain
from bridge.report.view import Card, Table


def facts(cards: Iterable[Card], *, live: bool = False) -> str:
    """The headline numbers, each with its exact value as an attribute; ``live`` has changes announced by screen readers."""
    items = "".join(
        f'<div class="fact"><dt>{escape(card.label)}</dt>'
        f'<dd data-fact="{escape(card.key)}" data-value="{escape(str(plain(card.value)))}">{escape(card.text)}</dd>'
        + (f'<dd class="detail">{escape(card.detail)}</dd>' if card.detail else "")
        + "</div>"
        for card in cards
    )
    announced = ' aria-live="polite"' if live else ""
    return f'<dl class="facts"{announced}>{items}</dl>'


def notes(sentences: Iterable[str]) -> str:
    """The sentences as a list; empty if there are none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def table(values: Table) -> str:
    """A table that scrolls sideways, also by keyboard."""
    head = "".join(f'<th scope="col">{escape(column.heading)}</th>' for column in values.columns)
    body = "".join(_row(values, row) for row in values.rows)
    caption = f"<caption>{escape(values.title)}</caption>" if values.title else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(values.title or "table")}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(table: Table, row: Iterable[Any]) -> str:
    cells = []
    for i, (column, value) in enumerate(zip(table.columns, row, strict=True)):
        text, exact = escape(column.text(value)), plain(value)
        number = isinstance(exact, (int, float)) and not isinstance(exact, bool)
        marked = f' class="number" data-value="{escape(str(exact))}"' if number else ""
        cells.append(f'<th scope="row">{text}</th>' if i == 0 else f"<td{marked}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"
