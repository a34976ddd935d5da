"""How near the matmuls of a model come to the peak, in their own shapes: what a device reaches with nothing else to do.

Shapes are those of one micro-batch on one rank: cut by tensor parallelism as megatron-core cuts (the produced dimension of the
first linear layer of a pair, the reduced one of the second), tokens by context parallelism, experts evenly filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.flops.plan import Plan, TableRow
from bridge.metrics.peak import fastest_matmul

#: Layers whose reduced dimension is shared; that of all other weights with a partner is the produced one.
_SHARED_INPUT = ("linear_proj", "linear_fc2", "out_proj")
_SHARED_OUTPUT = (
    "linear_qkv",
    "linear_q",
    "linear_kv",
    "linear_fc1",
    "in_proj",
    "output_layer",
    "linear_q_up_proj",
    "linear_kv_up_proj",
)


@dataclass(frozen=True)
class Matmul:
    """``[m, k] x [k, n]``.

    Attributes:
        name: of the layer and the pass.
        m, k, n: the sizes.
        flops: of all its layers in a micro-batch on one rank.
    """

    name: str
    m: int
    k: int
    n: int
    flops: float


@dataclass(frozen=True)
class MeasuredMatmul:
    """A matmul and how fast the device was with it, FLOP/s."""

    matmul: Matmul
    rate: float


def matmuls(plan: Plan, tokens: int, *, tensor: int = 1, experts: int | None = None) -> list[Matmul]:
    """The linear layers of a micro-batch, largest work first.

    Args:
        plan: of the model.
        tokens: of a micro-batch on one rank.
        tensor: ranks that share each layer.
        experts: of a layer, where there are any.
    """
    found: list[Matmul] = []
    for row in plan.table([tokens]):
        if row.rows == "tokens" and row.k > 1 and row.n > 1:
            found += _of_row(row, tokens, tensor, experts)
    return sorted(found, key=lambda one: -one.flops)


def _of_row(row: TableRow, tokens: int, tensor: int, experts: int | None) -> Iterable[Matmul]:
    k = row.k // tensor if row.name in _SHARED_INPUT else row.k
    n = row.n // tensor if row.name in _SHARED_OUTPUT else row.n
    m = max(1, round(tokens * row.times / (experts or 1))) if row.times != 1 else tokens
    share = k * n / (row.k * row.n)
    shapes = {"forward": (m, k, n), "dgrad": (m, n, k), "wgrad": (k, m, n)}
    for name, sizes in shapes.items():
        if flops := float(getattr(row, name)) * share:
            yield Matmul(f"{row.name} {name}", *sizes, flops)


def measure(found: Sequence[Matmul], dtype: Any, device: Any, seconds: float = 0.2) -> list[MeasuredMatmul]:
    """The fastest of several runs of each; equal shapes once."""
    rates: dict[tuple[int, int, int], float] = {}
    for one in found:
        sizes = (one.m, one.k, one.n)
        if sizes not in rates:
            rates[sizes], _ = fastest_matmul(*sizes, dtype, device, seconds)
    return [MeasuredMatmul(one, rates[one.m, one.k, one.n]) for one in found]


def reached(found: Iterable[MeasuredMatmul]) -> float:
    """FLOP/s over all of them, one after the other."""
    work = [(one.matmul.flops, one.matmul.flops / one.rate) for one in found]
    return sum(flops for flops, _ in work) / sum(seconds for _, seconds in work)
