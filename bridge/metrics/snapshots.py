"""What must be kept of a micro-batch to read its lengths later, when several are read at once.

On the training thread the first call into torch or numpy costs far more than the numbers do, so as little as possible is touched:
the shape of tokens, and a copy of a few offsets.  A copy, since a loader may fill one buffer again and again, in ways that no
version counter sees.  What needs more than that (a mask, positions, images, another form) is read at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.metrics.batch_lengths import FLATTENED, IMAGE_NAMES, OFFSET_NAMES, POSITION_NAMES, TOKEN_NAMES

#: Offsets up to here are copied to a list, more to an array.
_FEW = 256

TokenShape = tuple[int, ...]


@dataclass(frozen=True)
class Shaped:
    """Stands for tokens, of which nothing but the shape is looked at."""

    shape: TokenShape

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)


class Packed(NamedTuple):
    """Offsets of packed sequences, by their name, and the shape of their tokens."""

    shape: TokenShape
    name: str
    offsets: Any
    argmin: Any = None

    def plain(self) -> list[int] | None:
        """The offsets without their filler, where one row holds all and nothing is strange at first sight; else None."""
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
    """Lengths of rows of plain offsets one behind the other, int64 [n], with zeros at the seams; None where a row decreases.

    Args:
        offsets: of all rows.
        ends: of each row.
    """
    bounds = np.array(offsets, np.int64)
    lengths = bounds[1:] - bounds[:-1]
    lengths[np.array(ends[:-1], np.int64) - 1] = 0
    return lengths if not lengths.size or lengths.item(lengths.argmin()) >= 0 else None


Snapshot = TokenShape | Packed
"""The shape of tokens that nothing else is said of, or offsets."""


class Snapshots:
    """Takes what ``read_lengths`` reads of a batch, detached from it.

    Which of its names decide is found out once: in a run nearly all batches have the form of the one before.

    Args:
        images: whether images are looked for.
    """

    def __init__(self, *, images: bool) -> None:
        self._images = images
        self._names: tuple[Any, ...] = ()
        self._form: _Form | None = None
        self._many = False
        """Whether the last offsets were more than a few."""

    def of(self, batch: Any) -> Snapshot | None:
        """The snapshot of a micro-batch; None: it must be read now."""
        if type(batch) is not dict:
            return None
        if (*batch,) != self._names:
            self._look(batch)
        if self._form is None:
            return None
        tokens, kind, name, argmin_name, absent = self._form
        held, offsets = batch[tokens], None if name is None else batch[name]
        if type(held) is not kind or (name and offsets is None) or (absent and any(batch[one] is not None for one in absent)):
            self._look(batch)
            return None
        shape = held.shape
        if not shape or type(shape[-1]) is not int:  # rows of different lengths
            return None
        if name is None:
            return shape
        copied = self._copied(offsets)
        argmin = None if argmin_name is None else self._copied(batch[argmin_name])
        return None if copied is None or (argmin_name and argmin is None) else _packed((shape, name, copied, argmin))

    def _look(self, batch: dict[Any, Any]) -> None:
        self._names, self._form = (*batch,), _form(batch, images=self._images)

    def _copied(self, value: Any) -> Any:
        """Several numbers on the host; None where there are none to copy. Nested tensors raise."""
        if isinstance(value, torch.Tensor):
            if not value.is_cpu:
                return None
            if self._many:
                value = value.detach().numpy()
            else:
                copied = value.tolist()
                if type(copied) is not list:
                    return None
                copied = copied[0] if len(copied) == 1 and type(copied[0]) is list else copied
                self._many = len(copied) > _FEW
                return copied
        if not isinstance(value, np.ndarray) or not value.ndim:
            return None
        self._many = value.size > _FEW
        return value.copy()


class _Form(NamedTuple):
    """Which names of a micro-batch decide.

    Attributes:
        tokens: where they are. kind: their type.
        offsets: of packed sequences. argmin: where these end.
        absent: names that hold nothing, and would decide if they did.
    """

    tokens: str
    kind: Any
    offsets: str | None
    argmin: str | None
    absent: tuple[str, ...]


#: All that may decide.
_DECIDING = frozenset(
    (*TOKEN_NAMES, *OFFSET_NAMES, *(name + "_argmin" for name in OFFSET_NAMES), *POSITION_NAMES, *IMAGE_NAMES)
) | {"packed_seq_params", "attention_mask", FLATTENED}


def _form(batch: dict[Any, Any], *, images: bool) -> _Form | None:
    """What is kept where these names hold something; None: it must be read now."""
    names = {name for name, value in batch.items() if value is not None}
    tokens = next((name for name in TOKEN_NAMES if name in names), None)
    if tokens is None or "packed_seq_params" in names or (images and not names.isdisjoint(IMAGE_NAMES)):
        return None
    if not isinstance(batch[tokens], (torch.Tensor, np.ndarray)):
        return None
    absent = tuple(name for name in batch if name in _DECIDING and name not in names)
    for offsets in OFFSET_NAMES:
        if offsets in names:
            argmin = offsets + "_argmin"
            return _Form(tokens, type(batch[tokens]), offsets, argmin if argmin in names else None, absent)
    decisive = ("attention_mask", FLATTENED, *(() if "tokens" in names else POSITION_NAMES))
    return _Form(tokens, type(batch[tokens]), None, None, absent) if names.isdisjoint(decisive) else None


def restored(kept: Snapshot) -> dict[str, Any]:
    """The batch that a snapshot stands for."""
    if isinstance(kept, Packed):
        return {"tokens": Shaped(kept.shape), kept.name: kept.offsets, f"{kept.name}_argmin": kept.argmin}
    return {"tokens": Shaped(kept)}
