"""How close the matmuls of a model come to the peak in their own shapes, on a device that does nothing else.

Shapes are those of one micro-batch on one rank: sharded by tensor parallelism as in megatron-core (the output dimension of the
first linear layer of a pair, the input dimension of the second), tokens split by context parallelism, experts evenly loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.flops.plan import Plan, TableRow
from bridge.metrics.peak import fastest_matmul

#: Layers of which tensor parallelism shards the input dimension, and those of which it shards the output dimension.
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
        name: name of the layer, and the pass.
        m, k, n: the sizes.
        flops: FLOPs of all its layers in a micro-batch on one rank.
    """

    name: str
    m: int
    k: int
    n: int
    flops: float


@dataclass(frozen=True)
class MeasuredMatmul:
    """A matmul and the rate that the device reached, in FLOP/s."""

    matmul: Matmul
    rate: float


def matmuls(plan: Plan, tokens: int, *, tensor: int = 1, experts: int | None = None) -> list[Matmul]:
    """The matmuls of the linear layers in a micro-batch, the largest FLOPs first.

    Args:
        plan: plan of the model.
        tokens: tokens of a micro-batch on one rank.
        tensor: number of ranks that share each layer.
        experts: number of experts per layer, if there are any.
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
    """The rate of each matmul in the fastest of several runs; equal shapes are measured once."""
    rates: dict[tuple[int, int, int], float] = {}
    for one in found:
        sizes = (one.m, one.k, one.n)
        if sizes not in rates:
            rates[sizes], _ = fastest_matmul(*sizes, dtype, device, seconds)
    return [MeasuredMatmul(one, rates[one.m, one.k, one.n]) for one in found]


def reached(found: Iterable[MeasuredMatmul]) -> float:
    """FLOP/s of all matmuls, run one after the other."""
    work = [(one.matmul.flops, one.matmul.flops / one.rate) for one in found]
    return sum(flops for flops, _ in work) / sum(seconds for _, seconds in work)
