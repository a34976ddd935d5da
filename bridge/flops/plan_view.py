"""A plan as plain values, as a data frame and as a page of a notebook."""

from __future__ import annotations

import importlib
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.flops.plan import Plan

#: Of what ``as_dict`` returns; a change that readers would notice raises it.
VERSION = 1

_COLUMNS = ("component", "name", "rows", "k", "n", "times", "layers", "forward", "dgrad", "wgrad", "recompute")


def as_text(plan: Plan) -> str:
    """``Plan(convention='exact', 8,030,261,248 parameters, statistics: tokens, causal_pairs)``."""
    parts = [f"convention={plan.convention!r}", f"{plan.parameters()['total']:,} parameters"]
    parts.append(f"statistics: {', '.join(statistic.name for statistic in plan.statistics)}")
    return f"Plan({', '.join(parts)})"


def rows(plan: Plan) -> list[dict[str, Any]]:
    """A mapping per line of ``Plan.table``: FLOPs for one unit of the statistic that counts its rows."""
    found = [vars(row) for row in plan.tabulate([1] * len(plan.statistics))]
    return [{name: _plain(row[name]) for name in _COLUMNS} for row in found]


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain values, which JSON takes as they are."""
    return {
        "version": VERSION,
        "convention": plan.convention,
        "parameters": plan.parameters(),
        "statistics": [statistic.name for statistic in plan.statistics],
        "matmuls": rows(plan),
        "not_counted": list(plan.not_counted),
    }


def as_frame(plan: Plan) -> Any:
    """The matmuls as a ``pandas.DataFrame``; ImportError without pandas."""
    return importlib.import_module("pandas").DataFrame(rows(plan), columns=list(_COLUMNS))


def as_html(plan: Plan) -> str:
    """A heading and a table, for notebooks."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row[name])}</td>' for name in _COLUMNS)}</tr>" for row in rows(plan))
    notes = "".join(f"<p>not counted: {escape(sentence)}</p>" for sentence in plan.not_counted)
    return f"<p><code>{escape(as_text(plan))}</code></p><table><tr>{head}</tr>{body}</table>{notes}"


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def _cell(value: Any) -> str:
    return escape(f"{value:,}" if isinstance(value, (int, float)) else str(value))
