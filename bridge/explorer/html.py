"""Turns a view into HTML.  Every text is escaped, because names may come from an uploaded file."""

from __future__ import annotations

from html import escape

from bridge.explorer import behind
from bridge.report.html import facts, notes, table
from bridge.report.view import Table, View


def headline(view: View) -> str:
    """The numbers, and the remarks about them."""
    return facts(view.facts, live=True) + notes(view.notes)


def values(view: View, name: str) -> str:
    """The table, the buttons that copy or save its values (in files named ``name``), and the tables of the figures."""
    return table(view.table) + _export(view, name) + "".join(map(_folded, behind.tables(view.figures)))


def message(text: str) -> str:
    """An error, in place of the results."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def _folded(behind_figure: Table) -> str:
    return f'<details class="behind"><summary>Values of: {escape(behind_figure.title)}</summary>{table(behind_figure)}</details>'


_BUTTONS = [(verb, kind, f"{verb.title()} {kind.upper()}") for kind in ("csv", "json") for verb in ("copy", "save")]


def _export(view: View, name: str) -> str:
    """The buttons, and the texts that page.js copies or saves in the browser."""
    buttons = "".join(
        f'<button type="button" data-{verb}="{kind}" data-name="{escape(name)}">{label}</button>'
        for verb, kind, label in _BUTTONS
    )
    texts = {"csv": view.table.as_csv(), "json": view.as_json()}
    hidden = "".join(
        f'<textarea hidden aria-hidden="true" data-text="{kind}">{escape(text)}</textarea>' for kind, text in texts.items()
    )
    return f'<div class="export">{buttons}<output aria-live="polite"></output>{hidden}</div>'
