"""Which of torch's operations are matrix products, and the dimensions of each, read from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from bridge.flops.terms import CAUSAL, Context, Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class MatrixProduct:
    """One matrix product: the product of ``dims`` multiply-accumulates.

    Attributes:
        name: the term's name if neither operand is a weight.
        dims: the reduced dimension, the produced one, and the others.
        operands: the tensors that are multiplied.
        passes: DGRAD or WGRAD where the operation determines it, else NONE.
        sees: which keys a query sees, where the operation determines it.
        depthwise: a convolution that does not mix channels.
    """

    name: str
    dims: tuple[int, ...]
    operands: tuple[Any, ...]
    passes: Pass = Pass.NONE
    sees: Context | None = None
    depthwise: bool = False


BIDIRECTIONAL = Context("bidirectional")


#: Arguments of an operation, what it returned -> its matrix products.
Products = Callable[[tuple[Any, ...], Any], Iterator[MatrixProduct]]


def _matmul(first: int = 0) -> Products:
    """The product of two consecutive arguments; in ``addmm`` and ``baddbmm`` a bias comes before them."""

    def work(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
        a, b = args[first : first + 2]
        yield MatrixProduct("matmul", (a.shape[-1], b.shape[-1], *a.shape[:-1]), (a, b))

    return work


def _convolution_dims(x: Any, weight: Any, out: Any, transposed: bool) -> tuple[int, ...]:
    outer, *inner = weight.shape
    return (prod(inner), outer, x.shape[0], *(x if transposed else out).shape[2:])


def _convolution(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    x, weight, transposed = args[0], args[1], bool(args[6]) if len(args) > 6 else False
    deep = not transposed and weight.shape[1] == 1 and weight.shape[0] > 1
    yield MatrixProduct("convolution", _convolution_dims(x, weight, out, transposed), (x, weight), depthwise=deep)


def _convolution_backward(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    gradient, x, weight, transposed, mask = args[0], args[1], args[2], bool(args[7]), args[10]
    dims = _convolution_dims(x, weight, gradient, transposed)
    for runs, operand, passes in zip(mask, (weight, x), (Pass.DGRAD, Pass.WGRAD), strict=False):
        if runs:
            yield MatrixProduct("convolution", dims, (gradient, operand), passes)


def _attention(
    query: Any, key: Any, value: Any, others: tuple[int, ...], passes: Pass = Pass.NONE, sees: Context | None = None
) -> Iterator[MatrixProduct]:
    """The products of attention: scores, and their sums of values; ``others`` are the dimensions beside a head's width."""
    yield MatrixProduct("query_key", (query.shape[-1], *others), (query, key), passes, sees)
    yield MatrixProduct("scores_value", (value.shape[-1], *others), (query, value), passes, sees)


def _heads(query: Any, key: Any) -> tuple[int, ...]:
    batch, heads, length, _ = query.shape
    return heads, batch, length, key.shape[-2]


def _fused(place: int, mask: int | None = None) -> Products:
    """Fused attention; ``place`` and ``mask`` are the indices of ``is_causal`` and of the mask among its arguments."""

    def work(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
        query, key, value = args[:3]
        causal = len(args) > place and args[place] is True
        masked = mask is not None and args[mask] is not None
        whole = BIDIRECTIONAL if query.shape[-2] == key.shape[-2] else None
        return _attention(query, key, value, _heads(query, key), sees=None if masked else CAUSAL if causal else whole)

    return work


def _fused_backward(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    _, query, key, value = args[:4]
    for passes in (Pass.DGRAD, Pass.WGRAD):
        yield from _attention(query, key, value, _heads(query, key), passes)


def _varlen(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    """Packed sequences, which are equally long in a trace: tokens, heads, and the longest of them."""
    query, key, value, longest = args[0], args[1], args[2], args[6]
    sees = _window(args[9] if len(args) > 9 else None, causal=len(args) > 7 and args[7])
    return _attention(query, key, value, (query.shape[1], query.shape[0], longest), sees=sees)


def _varlen_backward(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    _, query, key, value, longest = args[0], args[1], args[2], args[3], args[9]
    for passes in (Pass.DGRAD, Pass.WGRAD):
        yield from _attention(query, key, value, (query.shape[1], query.shape[0], longest), passes)


def _window(window: Any, causal: bool) -> Context | None:
    """The context of a window given as (keys to the left, keys to the right), of which negative ones mean all."""
    left, right = window or (-1, 0 if causal else -1)
    if left < 0:
        return CAUSAL if causal or right == 0 else BIDIRECTIONAL if right < 0 else None
    return Context("window", (left + 1,)) if causal or right == 0 else None


#: Operation -> its matrix products.
KERNELS: dict[Any, Products] = {
    aten.mm: _matmul(),
    aten.bmm: _matmul(),
    aten.addmm: _matmul(1),
    aten.addmm_: _matmul(1),
    aten.baddbmm: _matmul(1),
    aten.baddbmm_: _matmul(1),
    aten._grouped_mm: _matmul(),
    aten._scaled_mm: _matmul(),
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _fused(4),
    aten._scaled_dot_product_flash_attention: _fused(4),
    aten._scaled_dot_product_efficient_attention: _fused(6, 3),
    aten._scaled_dot_product_cudnn_attention: _fused(6, 3),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
    aten._scaled_dot_product_flash_attention_backward: _fused_backward,
    aten._scaled_dot_product_efficient_attention_backward: _fused_backward,
    aten._scaled_dot_product_cudnn_attention_backward: _fused_backward,
}

#: The same by name, for operations that exist only once their module is imported, which takes seconds.
_IMPORTED = {"torch_attn::_varlen_attn": _varlen, "torch_attn::_varlen_attn_backward": _varlen_backward}


def products_of(operation: Any) -> Products | None:
    """The matrix products of an operation; None if it has none."""
    return KERNELS.get(operation) or _IMPORTED.get(operation._qualified_op_name)


#: Operations that only read a tensor's metadata.
QUESTIONS = frozenset({
    aten.sym_is_contiguous.default, aten.is_contiguous.default, aten.is_contiguous.memory_format,
    aten.is_strides_like_format.default, aten.is_non_overlapping_and_dense.default, aten.size.default, aten.sym_size.default,
    aten.stride.default, aten.sym_stride.default, aten.storage_offset.default, aten.sym_storage_offset.default,
    aten.numel.default, aten.sym_numel.default, aten.dim.default, torch.ops.prim.layout.default,
})  # fmt: skip
