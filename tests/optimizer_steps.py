"""Weights for an optimizer that multiplies matrices, and what torch counts in a step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.utils.flop_counter import FlopCounterMode

SHAPES = ((64, 64), (160, 64), (64, 320), (7, 33))


def weights(shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in made:
        weight.grad = torch.randn_like(weight)
    return made


def counted(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
