"""What must be kept of a micro-batch to read its lengths later, when several are read at once: a small batch of its own.

On the training thread the first call into torch or numpy costs far more than the numbers do, so as little as possible is touched:
the shape of tokens, and a copy of a few offsets.  A copy, since a loader may fill one buffer again and again, in ways that no
version counter sees.  What needs more than that (a mask, positions, another form) is read at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import torch

from bridge.metrics.batch_lengths import IMAGES, OFFSETS, PIXELS, READ_AT_ONCE, TOKENS

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


Snapshot = Union[Shape, dict[str, Any]]
"""The shape of the tokens alone, or a batch."""


def snapshot(batch: Any, *, images: bool) -> Optional[Snapshot]:
    """What ``read_lengths`` reads of a batch, detached from it; None: it must be read now.

    Args:
        batch: a micro-batch.
        images: whether images are looked for.
    """
    if type(batch) is not dict:
        return None
    kept: dict[str, Any] = {}
    for name, value in batch.items():
        if value is None:
            continue
        if name in TOKENS:
            if not isinstance(value, (torch.Tensor, np.ndarray)) or getattr(value, "is_nested", False):
                return None
            kept[name] = tuple(value.shape)
        elif name in OFFSETS or (images and name in IMAGES):
            if (copied := _copied(value)) is None:
                return None
            kept[name] = copied
        elif images and name in PIXELS:
            kept[name] = True
        elif name in READ_AT_ONCE and not (name in _BESIDE_TOKENS and batch.get("tokens") is not None):
            return None
    if len(kept) == 1 and (name := next(iter(kept))) in TOKENS:
        return kept[name]
    return {name: Shaped(value) if name in TOKENS else value for name, value in kept.items()} if kept else None


#: Beside ``tokens`` they say nothing.
_BESIDE_TOKENS = ("position_ids", "positions")


def _copied(value: Any) -> Any:
    """Numbers on the host; None where there are none to copy."""
    if isinstance(value, torch.Tensor):
        if not value.is_cpu or value.is_nested or not value.ndim:
            return None
        return value.tolist() if value.numel() <= _FEW else value.detach().numpy().copy()
    return value.copy() if isinstance(value, np.ndarray) and value.ndim else None


def restored(kept: Snapshot) -> dict[str, Any]:
    """The batch that a snapshot stands for."""
    return kept if isinstance(kept, dict) else {"tokens": Shaped(kept)}
