"""From a view to HTML.  Every text is escaped: names may come from an uploaded file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from bridge.explorer import behind
from bridge.explorer.view import Card, Table, View
from bridge.planning.quantities import plain


def headline(view: View) -> str:
    """The numbers, and the remarks about them."""
    return _facts(view.facts) + notes(view.notes)


def values(view: View, name: str) -> str:
    """The table, the buttons to take the values along in files called ``name``, and the numbers behind each figure."""
    return _table(view.table) + _export(view, name) + "".join(map(_folded, behind.tables(view.figures)))


def message(text: str) -> str:
    """What is wrong, where the results would stand."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def notes(sentences: Iterable[str]) -> str:
    """A list of remarks; nothing where there are none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _facts(facts: Iterable[Card]) -> str:
    cards = "".join(
        f'<div class="fact"><dt>{escape(fact.label)}</dt>'
        f'<dd data-fact="{escape(fact.key)}" data-value="{escape(str(plain(fact.value)))}">{escape(fact.text)}</dd>'
        + (f'<dd class="detail">{escape(fact.detail)}</dd>' if fact.detail else "")
        + "</div>"
        for fact in facts
    )
    return f'<dl class="facts" aria-live="polite">{cards}</dl>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column.heading)}</th>' for column in table.columns)
    body = "".join(_row(table, row) for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    # Focusable, so that the keyboard can scroll it sideways.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title or "table")}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _folded(table: Table) -> str:
    return f'<details class="behind"><summary>Values of: {escape(table.title)}</summary>{_table(table)}</details>'


def _row(table: Table, row: Iterable[Any]) -> str:
    cells = []
    for i, (column, value) in enumerate(zip(table.columns, row, strict=True)):
        text = escape(column.text(value))
        number = isinstance(plain(value), (int, float)) and not isinstance(value, bool)
        exact = f' data-value="{escape(str(plain(value)))}"' if number else ""
        style = ' class="number"' if number else ""
        cells.append(f'<th scope="row">{text}</th>' if i == 0 else f"<td{style}{exact}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


_BUTTONS = [(verb, kind, f"{verb.title()} {kind.upper()}") for kind in ("csv", "json") for verb in ("copy", "save")]


def _export(view: View, name: str) -> str:
    """Buttons, and the texts they copy or save; page.js does it in the browser."""
    buttons = "".join(
        f'<button type="button" data-{verb}="{kind}" data-name="{escape(name)}">{label}</button>'
        for verb, kind, label in _BUTTONS
    )
    texts = {"csv": view.table.as_csv(), "json": view.as_json()}
    hidden = "".join(
        f'<textarea hidden aria-hidden="true" data-text="{kind}">{escape(text)}</textarea>' for kind, text in texts.items()
    )
    return f'<div class="export">{buttons}<output aria-live="polite"></output>{hidden}</div>'
