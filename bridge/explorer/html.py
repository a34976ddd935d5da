"""From a view to HTML.  Every text is escaped: names may come from an uploaded file."""

from __future__ import annotations

from html import escape

from bridge.explorer import behind
from bridge.report.html import facts, notes, table
from bridge.report.view import Table, View


def headline(view: View) -> str:
    """The numbers, and the remarks about them."""
    return f'<div aria-live="polite">{facts(view.facts)}</div>' + notes(view.notes)


def values(view: View, name: str) -> str:
    """The table, the buttons to take the values along in files called ``name``, and the numbers behind each figure."""
    return table(view.table) + _export(view, name) + "".join(map(_folded, behind.tables(view.figures)))


def message(text: str) -> str:
    """What is wrong, where the results would stand."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def _folded(behind_figure: Table) -> str:
    return f'<details class="behind"><summary>Values of: {escape(behind_figure.title)}</summary>{table(behind_figure)}</details>'


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
