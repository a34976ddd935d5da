"""What must be kept of a micro-batch to read its lengths later, when several are read at once.

On the training thread the first call into torch or numpy costs far more than the numbers do, so as little as possible is touched:
the shape of tokens, and a copy of a few offsets.  A copy, since a loader may fill one buffer again and again, in ways that no
version counter sees.  What needs more than that (a mask, positions, images, another form) is read at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch

from bridge.metrics.batch_lengths import FLATTENED, IMAGE_NAMES, OFFSET_NAMES, POSITION_NAMES, TOKEN_NAMES

#: Offsets up to here are copied to a list, more to an array.
_FEW = 256

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shaped:
    """Stands for tokens, of which nothing but the shape is looked at."""

    shape: Shape

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)


class Packed(NamedTuple):
    """Offsets of packed sequences, by their name, and the shape of their tokens."""

    shape: Shape
    name: str
    offsets: Any
    argmin: Any = None

    def plain(self) -> Optional[list[int]]:
        """The offsets without their filler, where one row holds all and nothing is strange at first sight; else None."""
        offsets, end = self.offsets, len(self.offsets)
        if type(offsets) is not list or self.argmin is not None or not end or len(self.shape) != 1 + (self.shape[:-1] == (1,)):
            return None
        if type(offsets[0]) is not int or offsets[0] != 0:  # of one array: all are of one type
            return None
        while end > 1 and offsets[end - 1] <= 0:
            end -= 1
        if offsets[end - 1] > self.shape[-1]:
            return None
        return offsets if end == len(offsets) else offsets[:end]


def joined_lengths(offsets: Sequence[int], ends: Sequence[int]) -> Optional[Any]:
    """Lengths of rows of plain offsets one behind the other, int64 [n], with zeros at the seams; None where a row decreases.

    Args:
        offsets: of all rows.
        ends: of each row.
    """
    bounds = np.array(offsets, np.int64)
    lengths = bounds[1:] - bounds[:-1]
    lengths[np.array(ends[:-1], np.int64) - 1] = 0
    return lengths if not lengths.size or lengths.item(lengths.argmin()) >= 0 else None


Snapshot = Union[Shape, Packed]
"""The shape of tokens that nothing else is said of, or offsets."""


def snapshot(batch: Any, *, images: bool) -> Optional[Snapshot]:
    """What ``read_lengths`` reads of a batch, detached from it; None: it must be read now.

    Args:
        batch: a micro-batch.
        images: whether images are looked for.
    """
    if type(batch) is not dict:
        return None
    form = _form(tuple([name for name, value in batch.items() if value is not None]), images)
    if form is None:
        return None
    tokens, name, argmin_name = form
    shape = getattr(batch[tokens], "shape", None)
    if not shape or type(shape[-1]) is not int:  # rows of different lengths
        return None
    if name is None:
        return shape
    offsets = _copied(batch[name])
    argmin = None if argmin_name is None else _copied(batch[argmin_name])
    return None if offsets is None or (argmin_name and argmin is None) else Packed(shape, name, offsets, argmin)


#: Names of what is kept of a micro-batch: tokens, offsets, where these end.
_Form = tuple[str, Optional[str], Optional[str]]


@functools.lru_cache(maxsize=256)
def _form(names: tuple[Any, ...], images: bool) -> Optional[_Form]:
    """What is kept where these names hold something, which in a run are nearly always the same; None: it must be read now."""
    tokens = next((name for name in TOKEN_NAMES if name in names), None)
    if tokens is None or "packed_seq_params" in names or (images and not set(IMAGE_NAMES).isdisjoint(names)):
        return None
    for offsets in OFFSET_NAMES:
        if offsets in names:
            argmin = offsets + "_argmin"
            return tokens, offsets, argmin if argmin in names else None
    decisive = ("attention_mask", FLATTENED, *(() if "tokens" in names else POSITION_NAMES))
    return (tokens, None, None) if set(decisive).isdisjoint(names) else None


def _copied(value: Any) -> Any:
    """Numbers on the host; None where there are none to copy. Nested tensors raise."""
    if isinstance(value, torch.Tensor):
        if not value.is_cpu:
            return None
        if value.numel() > _FEW:
            return value.detach().numpy().copy()
        copied = value.tolist()
        if type(copied) is not list:
            return [copied]
        return copied[0] if len(copied) == 1 and type(copied[0]) is list else copied
    return value.copy() if isinstance(value, np.ndarray) else None


def restored(kept: Snapshot) -> dict[str, Any]:
    """The batch that a snapshot stands for."""
    if isinstance(kept, Packed):
        return {"tokens": Shaped(kept.shape), kept.name: kept.offsets, f"{kept.name}_argmin": kept.argmin}
    return {"tokens": Shaped(kept)}
