"""Traces on disk: a trace takes seconds, and reading one again milliseconds.

A file is JSON, named after everything a trace follows from: the configuration, the versions of what runs it and the code of this
package.  It is replaced as a whole, so any number of processes may share the folder; what cannot be read is traced again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bridge.config.caches import cache_folder, replace_json
from bridge.flops import frameworks
from bridge.flops.reading import Model
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind, Pass, Term, TermPlace

#: Traces that are kept: the newest.
CAPACITY = 256
#: What a configuration says about itself and not about its model.
_NOISE = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})


def load(values: Mapping[str, Any]) -> Model | None:
    """The trace of a configuration; None where there is none yet, or none that can be read."""
    try:
        return from_json(json.loads(_path(values).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ZeroDivisionError):
        return None


def store(values: Mapping[str, Any], model: Model) -> None:
    """Keep a trace; where the folder cannot be written, it is made again next time."""
    with contextlib.suppress(OSError):
        path = _path(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, as_json(model))
        kept = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-CAPACITY]:
            old.unlink(missing_ok=True)


def _path(values: Mapping[str, Any]) -> Path:
    plain = {name: value for name, value in values.items() if name not in _NOISE}
    text = json.dumps([_code(), _version("torch"), _version("transformers"), plain], sort_keys=True, default=repr)
    return cache_folder() / "traces" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@functools.cache
def _code() -> str:
    """Changes with the files that make a trace."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---- a model as JSON ---------------------------------------------------------------------------------------------------


def as_json(model: Model) -> dict[str, Any]:
    """A traced model: what its terms are made of once, then one line for each."""
    sorts: dict[str, int] = {}
    terms = []
    for term in model.traced:
        sort = json.dumps(_sort(term))
        place = term.place.value if isinstance(term.place, TermPlace) else term.place
        terms.append([sorts.setdefault(sort, len(sorts)), term.path, place])
    content = {"sorts": [json.loads(sort) for sort in sorts], "terms": terms}
    return {**content, "freeze": list(model.freeze), "not_counted": list(model.not_counted)}


def from_json(content: Mapping[str, Any]) -> Model:
    """The model again."""
    sorts = [_fields(sort) for sort in content["sorts"]]
    terms = tuple(
        Term(**sorts[sort], path=path, place=TermPlace(place) if isinstance(place, str) else place)
        for sort, path, place in content["terms"]
    )
    freeze, sentences = tuple(content["freeze"]), tuple(content["not_counted"])
    return Model(traced=terms, freeze=freeze, framework=frameworks.TRANSFORMERS, not_counted=sentences)


_NUMBERS = ("name", "component", "k", "n", "weight", "copies", "active_copies")


def _sort(term: Term) -> dict[str, Any]:
    rows = term.rows
    kind = rows.shape if isinstance(rows, Context) else rows.kind
    return {
        **{name: getattr(term, name) for name in _NUMBERS},
        "times": str(term.times),
        "kind": term.kind.value,
        "passes": term.passes.value,
        "rows": [type(rows).__name__, str(kind), str(rows.over), list(rows.sizes)],
    }


def _fields(sort: Mapping[str, Any]) -> dict[str, Any]:
    what, kind, over, sizes = sort["rows"]
    rows = (Context if what == "Context" else Statistic)(kind, over=over, sizes=tuple(sizes))
    changed = {"times": Fraction(sort["times"]), "kind": Kind(sort["kind"]), "passes": Pass(sort["passes"]), "rows": rows}
    return {**{name: sort[name] for name in _NUMBERS}, **changed}
