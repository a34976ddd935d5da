"""Flex attention, whose backward pass torch runs on GPUs only: a trace runs its two products instead and reads its mask."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from bridge.tracing.contexts import context_of


@contextmanager
def flex_as_products(recorder: Any) -> Iterator[None]:
    """Replace flex attention by its two products inside this block, and tell the recorder which keys a query sees."""
    module: Any = sys.modules.get("torch.nn.attention.flex_attention")
    names = {
        "flex_attention_hop": partial(_products, recorder),
        "_validate_device": lambda *_: None,
        "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True,
    }
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name in before:
        setattr(module, name, names[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _products(recorder: Any, query: Any, key: Any, value: Any, score: Any, blocks: Any, *_: Any) -> tuple[Any, Any, Any]:
    """The output, and two unused numbers for each query."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    sees = blocks[-1]
    with recorder.seeing(context_of(sees, sizes_of(sees))):
        out = torch.softmax(query @ key.mT, -1) @ value
    numbers = query.new_empty(query.shape[:-1], dtype=torch.float32)
    return out, numbers, numbers


def sizes_of(sees: Callable[..., Any]) -> tuple[int, ...]:
    """The positive integers in a mask function's closure and globals: its windows and chunks, if it has any."""
    found = inspect.getclosurevars(sees) if inspect.isfunction(sees) else None
    values = [*found.nonlocals.values(), *found.globals.values()] if found else []
    inner = [size for value in values if inspect.isfunction(value) and value is not sees for size in sizes_of(value)]
    return tuple(value for value in (*values, *inner) if type(value) is int and value > 0)
