"""The colours of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

#: Told apart with any colour vision (Okabe and Ito), and a few tints of them.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a400", "#7a7a7a", "#7e57c2", "#4db6ac")

#: The same part has the same colour in every figure.
COLOURS = {
    "mlp": "#0072b2",
    "moe": "#7e57c2",
    "core_attention": "#e69f00",
    "self_attention": "#009e73",
    "output_layer": "#cc79a7",
    "mamba": "#56b4e9",
    "gated_delta_net": "#56b4e9",
    "kimi_delta_attention": "#56b4e9",
    "indexer": "#d55e00",
    "cross_attention": "#d55e00",
    "adapters": "#d55e00",
    "mtp": "#b5a400",
    "vision_model": "#4db6ac",
    "vision_attention": "#b5a400",
    "vision_projection": "#7a7a7a",
    "forward": "#0072b2",
    "dgrad": "#56b4e9",
    "wgrad": "#e69f00",
    "recompute": "#7a7a7a",
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the part's own, or the next that is free."""
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = cycle([colour for colour in PALETTE if colour not in taken] or PALETTE)
    return {name: COLOURS.get(name) or next(free) for name in names}
