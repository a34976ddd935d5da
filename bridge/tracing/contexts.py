"""Which keys a query sees, read from the masks that transformers passes to its attention functions and never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from bridge.flops.statistics import chunk_pairs, triangle, window_pairs
from bridge.flops.terms import CAUSAL, Context

#: Attributes of a layer or a config that hold the window or the chunk of its mask.
_SIZES = ("sliding_window", "attention_chunk_size", "chunk_size")


class Contexts:
    """Tells a recorder the context of every attention function that transformers calls.

    Attributes:
        recorder: the recorder of the run; set before it starts.
    """

    def __init__(self) -> None:
        self.recorder: Any = None
        self._masks: dict[int, tuple[Any, Callable[..., Any]]] = {}
        self._known: dict[tuple[Any, ...], Context | None] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Wrap transformers' mask and attention functions inside this block."""
        from transformers import masking_utils
        from transformers.modeling_utils import AttentionInterface

        masks: dict[str, Any] = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
        find = AttentionInterface.get_interface
        before, find_packed = dict(masks), masking_utils.find_packed_sequence_indices
        for name, make in before.items():
            masks[name] = self._remembering(make)
        setattr(AttentionInterface, "get_interface", lambda table, *names: self._telling(find(table, *names)))  # noqa: B010
        # What is traced is not packed; without data transformers could not see that.
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = find_packed
            setattr(AttentionInterface, "get_interface", find)  # noqa: B010
            masks.update(before)

    def _remembering(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def remember(*args: Any, **kwargs: Any) -> Any:
            mask = make(*args, **kwargs)
            if isinstance(mask, torch.Tensor) and "mask_function" in kwargs:
                self._masks[id(mask)] = mask, kwargs["mask_function"]
            return mask

        return remember

    def _telling(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        def tell(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
            with self.recorder.seeing(self._read(module, query, key, attention_mask, kwargs)):
                return attend(module, query, key, value, attention_mask, *args, **kwargs)

        return tell

    def _read(self, module: Any, query: Any, key: Any, mask: Any, kwargs: dict[str, Any]) -> Context | None:
        if query.shape[-2] != key.shape[-2]:
            return None
        if mask is None:
            causal = kwargs.get("is_causal")
            causal = getattr(module, "is_causal", False) if causal is None else causal
            return CAUSAL if causal else Context("bidirectional")
        sees = self._masks.get(id(mask), (None, None))[1]
        if sees is None:
            return None
        sizes = tuple(_sizes(module, kwargs))
        known = id(sees), sizes
        if known not in self._known:
            self._known[known] = context_of(sees, sizes)
        return self._known[known]


def _sizes(module: Any, kwargs: dict[str, Any]) -> Iterator[int]:
    """The windows and chunks that a call, its layer or the layer's config names."""
    for source in (kwargs, vars(module), vars(getattr(module, "config", module))):
        for name in _SIZES:
            size = source.get(name)
            if isinstance(size, int) and not isinstance(size, bool) and size > 0:
                yield size


def context_of(sees: Callable[..., Any], sizes: tuple[int, ...] = ()) -> Context | None:
    """The context of a mask function, found by evaluating it; None if it has none of the known forms.

    Args:
        sees: (batch, head, query, key) -> whether the query sees the key, as transformers and flex attention define masks.
        sizes: the windows and chunks that it may have, in tokens; those above 65,536 are not tried.
    """
    length = 2 * max((64, *(size for size in sizes if size <= 2**16))) + 3
    rows = sorted({0, 1, length // 3, length // 2, length - 1, *(size for size in sizes if size < length)})
    try:
        with _disable_current_modes(), torch.device("cpu"):
            keys, first = torch.arange(length), torch.tensor(0)
            counts = [int(torch.as_tensor(sees(first, first, torch.tensor(row), keys)).expand(length).sum()) for row in rows]
    except Exception:
        return None
    for context, pairs, after in _forms(sizes):
        seen = [pairs(row + 1) - pairs(row) + min(after, length - 1 - row) for row in rows]
        if seen == counts:
            return context
    return None


def _forms(sizes: tuple[int, ...]) -> Iterator[tuple[Context, Callable[[int], int], float]]:
    """The known forms in the order in which they are tried.

    Yields:
        A context, its causal pairs as a function of the number of tokens, and how many later keys a query sees.
    """
    yield CAUSAL, triangle, 0
    yield from ((Context("window", (size,)), partial(window_pairs, window=size), 0) for size in sizes)
    yield from ((Context("chunk", (size,)), partial(chunk_pairs, chunk=size), 0) for size in sizes)
    yield Context("bidirectional"), triangle, math.inf
    # Some configs name the largest distance that is visible, others the smallest that is not.
    for size in (*sizes, *(size + 1 for size in sizes)):
        yield Context("bidirectional_window", (size,)), partial(window_pairs, window=size), size - 1
