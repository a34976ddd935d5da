"""What must be kept of a micro-batch so that its lengths can be read later, together with those of others.

On the training thread the first call into torch or numpy costs far more than the arithmetic, so as little as possible is read:
the shape of the tokens and a few offsets.  The offsets are copied, because a loader may reuse its buffer without changing a
version counter.  Batches that need more (a mask, positions, images, another form) are read at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.metrics.batch_lengths import FLATTENED, IMAGE_NAMES, OFFSET_NAMES, POSITION_NAMES, PROJECTED, TOKEN_NAMES

#: Up to this many offsets are copied to a list, more to an array.
_FEW = 256

TokenShape = tuple[int, ...]


@dataclass(frozen=True)
class Shaped:
    """A substitute for tokens of which only the shape matters."""

    shape: TokenShape

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)


class Packed(NamedTuple):
    """The offsets of packed sequences, the name they had in the batch, and the shape of its tokens."""

    shape: TokenShape
    name: str
    offsets: Any
    argmin: Any = None

    def plain(self) -> list[int] | None:
        """The offsets without their filler; None where there are several rows or the offsets need a full check."""
        shape, offsets, end = self.shape, self.offsets, len(self.offsets)
        if len(shape) != 1 and (len(shape) != 2 or shape[0] != 1):
            return None
        if type(offsets) is not list or self.argmin is not None or not end:
            return None
        if type(offsets[0]) is not int or offsets[0] != 0:  # of one array: all are of one type
            return None
        while end > 1 and offsets[end - 1] <= 0:
            end -= 1
        if offsets[end - 1] > shape[-1]:
            return None
        return offsets if end == len(offsets) else offsets[:end]


_packed: Callable[[tuple[Any, ...]], Packed] = functools.partial(tuple.__new__, Packed)  # without a Python frame


def joined_lengths(offsets: Sequence[int], ends: Sequence[int]) -> Any | None:
    """The lengths between concatenated rows of plain offsets; None if a row decreases.

    Args:
        offsets: the offsets of all rows, one row after the other.
        ends: where each row ends in ``offsets``.

    Returns:
        int64 [n], with a zero (an empty segment) between two rows.
    """
    bounds = np.array(offsets, np.int64)
    lengths = bounds[1:] - bounds[:-1]
    lengths[np.array(ends[:-1], np.int64) - 1] = 0
    return lengths if not lengths.size or lengths.item(lengths.argmin()) >= 0 else None


Snapshot = TokenShape | Packed
"""The shape of tokens in rows of one length, or packed offsets."""


class Snapshots:
    """Makes snapshots: copies of what ``read_lengths`` would read of a batch.

    The deciding names are looked up again only if names or types differ from the previous batch's, which is rare in a run.

    Args:
        images: whether to look for images.
    """

    def __init__(self, *, images: bool) -> None:
        self._images = images
        self._names: tuple[Any, ...] = ()
        self._types: tuple[type, ...] = ()
        self._form: _Form | None = None

    def of(self, batch: Any) -> Snapshot | None:
        """The snapshot of a micro-batch; None if it must be read now."""
        if type(batch) is not dict:
            return None
        names, types = tuple(batch), tuple(map(type, batch.values()))
        if names != self._names or types != self._types:
            self._names, self._types = names, types
            self._form = _form(batch, images=self._images)
        if self._form is None:
            return None
        tokens, name, argmin_name = self._form
        shape = batch[tokens].shape
        if not shape or type(shape[-1]) is not int:  # rows of different lengths
            return None
        if name is None:
            return shape
        offsets = _copied(batch[name])
        argmin = None if argmin_name is None else _copied(batch[argmin_name])
        return None if offsets is None or (argmin_name and argmin is None) else _packed((shape, name, offsets, argmin))


#: The names under which a micro-batch has its tokens, its offsets and their ``argmin``.
_Form = tuple[str, str | None, str | None]


def _form(batch: dict[Any, Any], *, images: bool) -> _Form | None:
    """What to keep of batches with these names and types; None if they must be read at once."""
    names = {name for name, value in batch.items() if value is not None}
    tokens = next((name for name in TOKEN_NAMES if name in names), None)
    if tokens is None or not names.isdisjoint(("packed_seq_params", PROJECTED)) or (images and not names.isdisjoint(IMAGE_NAMES)):
        return None
    if not isinstance(batch[tokens], (torch.Tensor, np.ndarray)):
        return None
    for offsets in OFFSET_NAMES:
        if offsets in names:
            argmin = offsets + "_argmin"
            return tokens, offsets, argmin if argmin in names else None
    decisive = ("attention_mask", FLATTENED, *(() if "tokens" in names else POSITION_NAMES))
    return (tokens, None, None) if names.isdisjoint(decisive) else None


def _copied(value: Any) -> Any:
    """A copy of several numbers on the host; None for a tensor on a device or a single number. Nested tensors raise."""
    if isinstance(value, torch.Tensor):
        if not value.is_cpu:
            return None
        if value.numel() > _FEW:
            return value.detach().numpy().copy()
        copied = value.tolist()
        if type(copied) is not list:
            return None
        return copied[0] if len(copied) == 1 and type(copied[0]) is list else copied
    return value.copy() if isinstance(value, np.ndarray) and value.ndim else None


def restored(kept: Snapshot) -> dict[str, Any]:
    """A batch with the lengths of a snapshot."""
    if isinstance(kept, Packed):
        return {"tokens": Shaped(kept.shape), kept.name: kept.offsets, f"{kept.name}_argmin": kept.argmin}
    return {"tokens": Shaped(kept)}
