"""Which operations of torch are matrix work, and the sizes that multiply to it: facts about its signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bridge.flops.terms import CAUSAL, Context, Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class MatrixProduct:
    """One matrix product: the product of ``dims`` multiply-accumulates.

    Attributes:
        name: what it is called where it has no weight.
        dims: the reduced dimension, the produced one, and the others.
        operands: the tensors that are multiplied.
        passes: what it is in a backward pass, where the operation says so itself.
        sees: which keys a query sees, where the operation itself says so.
        depthwise: a convolution that does not mix channels.
    """

    name: str
    dims: tuple[int, ...]
    operands: tuple[Any, ...]
    passes: Pass = Pass.NONE
    sees: Context | None = None
    depthwise: bool = False


BIDIRECTIONAL = Context("bidirectional")


def _matmul(a: Any, b: Any, out: Any) -> Iterator[MatrixProduct]:
    yield MatrixProduct("matmul", (a.shape[-1], b.shape[-1], *a.shape[:-1]), (a, b))


def _second(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    """``addmm`` and ``baddbmm``: a bias, then the two factors."""
    return _matmul(args[1], args[2], out)


def _first(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    return _matmul(args[0], args[1], out)


def _convolution_dims(x: Any, weight: Any, out: Any, transposed: bool) -> tuple[int, ...]:
    outer, inner, *taps = weight.shape
    for tap in taps:
        inner *= tap
    return (inner, outer, x.shape[0], *(x if transposed else out).shape[2:])


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


def _attention(place: int, mask: int | None = None) -> Callable[[tuple[Any, ...], Any], Iterator[MatrixProduct]]:
    """Fused attention; the places of ``is_causal`` and of its mask among the arguments."""

    def work(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
        query, key, value = args[:3]
        batch, heads, length, size = query.shape
        causal = len(args) > place and args[place] is True
        masked = mask is not None and args[mask] is not None
        whole = BIDIRECTIONAL if length == key.shape[-2] else None
        sees = None if masked else CAUSAL if causal else whole
        yield MatrixProduct("query_key", (size, heads, batch, length, key.shape[-2]), (query, key), sees=sees)
        yield MatrixProduct("scores_value", (value.shape[-1], heads, batch, length, key.shape[-2]), (query, value), sees=sees)

    return work


def _varlen(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    """Packed sequences, which are equally long in a trace: tokens, heads, and the longest of them."""
    query, key, value, longest = args[0], args[1], args[2], args[6]
    sees = _window(args[9] if len(args) > 9 else None, causal=len(args) > 7 and args[7])
    yield MatrixProduct("query_key", (query.shape[-1], query.shape[1], query.shape[0], longest), (query, key), sees=sees)
    yield MatrixProduct("scores_value", (value.shape[-1], query.shape[1], query.shape[0], longest), (query, value), sees=sees)


def _window(window: Any, causal: bool) -> Context | None:
    """Of keys to the left and to the right; negative where all of them are seen."""
    left, right = window or (-1, 0 if causal else -1)
    if left < 0:
        return CAUSAL if causal or right == 0 else BIDIRECTIONAL if right < 0 else None
    return Context("window", (left + 1,)) if causal or right == 0 else None


def _varlen_backward(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    _, query, key, value, longest = args[0], args[1], args[2], args[3], args[9]
    for passes in (Pass.DGRAD, Pass.WGRAD):
        yield MatrixProduct("query_key", (query.shape[-1], query.shape[1], query.shape[0], longest), (query, key), passes)
        yield MatrixProduct("scores_value", (value.shape[-1], query.shape[1], query.shape[0], longest), (query, value), passes)


def _attention_backward(args: tuple[Any, ...], out: Any) -> Iterator[MatrixProduct]:
    _, query, key, value = args[:4]
    batch, heads, length, size = query.shape
    for passes in (Pass.DGRAD, Pass.WGRAD):
        yield MatrixProduct("query_key", (size, heads, batch, length, key.shape[-2]), (query, key), passes)
        yield MatrixProduct("scores_value", (value.shape[-1], heads, batch, length, key.shape[-2]), (query, value), passes)


#: Operation -> its matrix products.
KERNELS: dict[Any, Callable[[tuple[Any, ...], Any], Iterator[MatrixProduct]]] = {
    aten.mm: _first,
    aten.bmm: _first,
    aten.addmm: _second,
    aten.addmm_: _second,
    aten.baddbmm: _second,
    aten.baddbmm_: _second,
    aten._grouped_mm: _first,
    aten._scaled_mm: _first,
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention(4),
    aten._scaled_dot_product_flash_attention: _attention(4),
    aten._scaled_dot_product_efficient_attention: _attention(6, 3),
    aten._scaled_dot_product_cudnn_attention: _attention(6, 3),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
}

#: The same by name, of operations that are there once their module is imported, which takes seconds and whoever calls them does.
_IMPORTED = {"torch_attn::_varlen_attn": _varlen, "torch_attn::_varlen_attn_backward": _varlen_backward}


def products_of(operation: Any) -> Callable[[tuple[Any, ...], Any], Iterator[MatrixProduct]] | None:
    """The matrix products of an operation; None: it has none."""
    return KERNELS.get(operation) or _IMPORTED.get(operation._qualified_op_name)


#: Questions about a tensor; they do no work.
QUESTIONS = frozenset({
    aten.sym_is_contiguous.default, aten.is_contiguous.default, aten.is_contiguous.memory_format,
    aten.is_strides_like_format.default, aten.is_non_overlapping_and_dense.default, aten.size.default, aten.sym_size.default,
    aten.stride.default, aten.sym_stride.default, aten.storage_offset.default, aten.sym_storage_offset.default,
    aten.numel.default, aten.sym_numel.default, aten.dim.default, torch.ops.prim.layout.default,
})  # fmt: skip
