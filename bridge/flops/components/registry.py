"""The tables of all rows, collected from the component files: a block without a row in its file is in none of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from bridge.flops import components
from bridge.flops.rows import Channel, Mixer, Part, Projector, Row

R = TypeVar("R", bound=Row)

_NAMES = sorted(module.name for module in pkgutil.iter_modules(components.__path__, f"{components.__name__}."))
_MODULES = [importlib.import_module(name) for name in _NAMES if name != __name__]


def _rows(kind: type[R]) -> Mapping[str, R]:
    found: dict[str, R] = {}
    for row in (value for module in _MODULES for value in vars(module).values() if type(value) is kind):
        assert found.setdefault(row.name, row) is row, f"two rows of {kind.__name__} have the name {row.name!r}"
    return found


MIXERS = _rows(Mixer)
CHANNELS = _rows(Channel)
PROJECTORS = _rows(Projector)
PARTS = _rows(Part)

#: Symbols of hybrid patterns -> the row that stands there.
SYMBOLS: Mapping[str, Mixer | Channel] = {row.symbol: row for row in (*MIXERS.values(), *CHANNELS.values()) if row.symbol}
#: What experimental_attention_variant may be.
VARIANTS = tuple(name for row in MIXERS.values() for name in row.variant)
#: Line of the breakdown -> the name of its color.
COLOURS: Mapping[str, str] = {
    line: colour
    for row in (*MIXERS.values(), *CHANNELS.values(), *PROJECTORS.values(), *PARTS.values())
    for line, colour in row.colour.items()
}
