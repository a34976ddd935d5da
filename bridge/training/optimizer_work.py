"""The matrix products of a live optimizer on this rank, from its parameter groups, whether megatron-core wraps it or not.

With tensor parallelism Muon gathers whole matrices on every rank (``duplicated``), splits their products over the ranks
(``distributed``) or treats each rank's part as a matrix (``blockwise``); data-parallel replicas repeat the work or divide the
matrices among them.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from bridge.flops.optimizers import FLOPS_PER_MAC, Matrix, MatrixOptimizer, multiplies, newton_schulz
from bridge.flops.shapes import ConfigError

#: torch's setting for the precision of FP32 matrix products -> the format in which a GPU computes them.
_FORMATS = {"medium": "bf16", "high": "tf32", "highest": "fp32"}


def multiplies_matrices(optimizer: Any) -> bool:
    """Whether an optimizer, or one inside it, multiplies matrices; the same on all ranks."""
    return optimizer is not None and any(map(multiplies, (name for one in _leaves(optimizer) for name in _kinds(one))))


def step_flops(optimizer: Any) -> dict[str, int]:
    """FLOPs of the matrix products in one optimizer step on this rank, by number format; empty if there are none.

    Args:
        optimizer: torch's, megatron-core's, or one that chains several.

    Raises:
        ConfigError: the optimizer multiplies matrices, but it is unknown which.
    """
    found: Counter[str] = Counter()
    for one in _leaves(optimizer):
        if flops := _one(one):
            found[_format(one)] += flops
    return dict(found)


def _leaves(optimizer: Any) -> Iterator[Any]:
    """The innermost optimizers, which hold the weights."""
    inner = getattr(optimizer, "chained_optimizers", None) or [getattr(optimizer, "optimizer", None)]
    held = [one for one in inner if one is not None and one is not optimizer]
    if not held:
        yield optimizer
    for one in held:
        yield from _leaves(one)


def _kinds(optimizer: Any) -> list[str]:
    return [kind.__name__ for kind in type(optimizer).__mro__]


def _format(optimizer: Any) -> str:
    """The number format of the products; torch's own Muon uses BF16."""
    return _FORMATS[getattr(optimizer, "fp32_matmul_prec", "medium")]


def _one(optimizer: Any) -> int:
    names, groups = _kinds(optimizer), getattr(optimizer, "param_groups", None) or []
    if "SOAP" in names and hasattr(optimizer, "use_kl_shampoo"):
        rounds = 0 if optimizer.use_eigh else optimizer.power_iter_steps
        return MatrixOptimizer("soap", power_steps=rounds, kl=optimizer.use_kl_shampoo).flops(_shapes(groups))
    if "OrthogonalizedOptimizer" in names and (steps := _iterations(optimizer)):
        return sum(_orthogonalised(optimizer, weight, steps) for weight in _weights(groups))
    if names[0] == "Muon" and all("ns_steps" in group for group in groups):
        return sum(MatrixOptimizer("muon", steps=group["ns_steps"]).flops(_shapes([group])) for group in groups)
    if any(map(multiplies, names)):
        raise ConfigError(f"{names[0]}: the matrices that this optimizer multiplies are unknown")
    return 0


def _weights(groups: Iterable[Any]) -> Iterator[Any]:
    return (weight for group in groups for weight in group["params"])


def _shapes(groups: Iterable[Any]) -> Iterator[Matrix]:
    return ((weight.shape[0], weight.shape[1]) for weight in _weights(groups))


def _iterations(optimizer: Any) -> int:
    """Newton-Schulz iterations, which the optimizer keeps in a closure; 0 if there are none."""
    function = optimizer.scaled_orthogonalize_fn
    known = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return int(known.get("num_ns_steps", 0))


def _orthogonalised(optimizer: Any, weight: Any, steps: int) -> int:
    rows, columns = weight.shape
    parts = [rows]
    if getattr(optimizer, "split_qkv", False) and optimizer.is_qkv_fn(weight):
        widths = getattr(weight, "qkv_split_shapes", None) or optimizer.qkv_split_shapes
        parts = [rows // sum(widths) * width for width in widths]
    return FLOPS_PER_MAC * steps * sum(newton_schulz(*_sides(optimizer, weight, part, columns)) for part in parts)


def _sides(optimizer: Any, weight: Any, rows: int, columns: int) -> Matrix:
    """The sides of the matrix that this rank multiplies: first the side of the products, then (its part of) the other one."""
    mode = getattr(optimizer, "tp_mode", None) or getattr(optimizer, "mode", "blockwise")
    split = getattr(weight, "partition_dim", -1)
    ranks = _tensor_ranks(optimizer, weight) if mode != "blockwise" and split in (0, 1) else 1
    if split in (0, 1) and mode == "distributed":
        return (columns, rows) if split == 0 else (rows, columns)
    whole = (rows * ranks, columns) if split == 0 else (rows, columns * ranks)
    return min(whole), max(whole)


def _tensor_ranks(optimizer: Any, weight: Any) -> int:
    groups = optimizer.pg_collection
    group = groups and (groups.expt_tp if getattr(weight, "expert_tp", False) else groups.tp)
    return group.size() if group else 1
