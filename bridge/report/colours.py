"""The colors of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from bridge.flops.components import registry

#: Distinguishable with any color vision (Okabe and Ito), plus a few tints.
PALETTE = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "pink": "#cc79a7",
    "sky": "#56b4e9",
    "vermilion": "#d55e00",
    "olive": "#b5a400",
    "grey": "#7a7a7a",
    "violet": "#7e57c2",
    "teal": "#4db6ac",
}

#: Name -> color, the same in every figure: components take theirs from their rows, the other parts are listed here.
COLOURS = {
    name: PALETTE[colour]
    for name, colour in {
        **registry.COLOURS,
        "adapters": "vermilion",
        "forward": "blue",
        "dgrad": "sky",
        "wgrad": "orange",
        "recompute": "grey",
        "ideal": "green",
        "kernels": "sky",
        "compute": "sky",
        "imbalance": "vermilion",
        "bubble": "pink",
        "communication": "orange",
        "optimizer": "violet",
        "data": "teal",
        "padding": "olive",
        "host": "blue",
    }.items()
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A color for each name: its own, or the next unused one."""
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = cycle([colour for colour in PALETTE.values() if colour not in taken] or PALETTE.values())
    return {name: COLOURS.get(name) or next(free) for name in names}
