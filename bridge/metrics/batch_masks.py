"""Lengths of sequences from an attention mask, if its meaning is clear.

============================  ==============================================================================
mask                          meaning
============================  ==============================================================================
[b, s] of 0 and other         not 0: a real token; different numbers in one row (1, 1, 2, 2, 0) are documents
[b, s] with negatives         added to the scores: near 0 a real token, near minus infinity padding
[s, s], [b, s, s],            which token attends to which, added or boolean (of either sense): a token that
[b, h, s, s]                  attends to itself is real; one that does not attend to its predecessor begins a
                              document
[b, 1, 1, s]                  padding, if it is added to the scores
============================  ==============================================================================

Masks of pairs are read from the main diagonal and its two neighbors, so a mask of 8 x 4,096 x 4,096 costs as much as one of
8 x 4,096.  A mask of any other form is refused with an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = Any


class NoLengths(ValueError):
    """The lengths of a micro-batch were not found, or they are impossible."""


#: Added to a score, this or less hides a key: Megatron's -10000, torch's -inf and finfo.min. Position biases are far larger.
_HIDES = -9_999.0


def mask_lengths(mask: Array, shape: tuple[int, int] | None) -> Array:
    """Real tokens of each sequence, int64 [n].

    Args:
        mask: a numpy array, or a tensor on a device.
        shape: shape of the tokens, [b, s]; None: unknown.

    Raises:
        NoLengths: The mask has none of the known forms, or does not fit tokens of this shape.
    """
    if mask.ndim == 1:
        mask = mask[None]
    if mask.ndim == 2 and shape in (None, tuple(mask.shape)):
        return _padding(mask)
    if mask.ndim not in (2, 3, 4) or shape is None or mask.shape[-1] != shape[1] or mask.shape[-2] not in (1, shape[1]):
        raise _strange(mask, shape)
    if mask.ndim == 4:
        mask = mask[:, 0]
    views = mask if mask.ndim == 3 else mask[None]
    if views.shape[0] not in (1, shape[0]):
        raise _strange(mask, shape)
    if not isinstance(mask, np.ndarray):
        raise NoLengths(f"attention_mask {list(mask.shape)} of pairs is on a device; give a mask [b, s], or cu_seqlens")
    return np.tile(_seen(views), shape[0] // views.shape[0])


def _strange(mask: Array, shape: tuple[int, int] | None) -> NoLengths:
    beside = "without tokens" if shape is None else f"beside tokens {list(shape)}"
    return NoLengths(f"attention_mask {list(mask.shape)} {beside}; known are [b, s], [s, s], [b, s, s] and [b, h, s, s]")


# ---- padding --------------------------------------------------------------------------------------------------------


def _padding(mask: Array) -> Array:
    if not isinstance(mask, np.ndarray):
        return _padding_on_device(mask)
    kind = mask.dtype.kind
    if kind == "b" or not mask.size:
        return _counts(mask)
    if kind in "iu" and mask.view(f"u{mask.itemsize}").max() <= 1:  # the usual case; as unsigned numbers, negatives are large
        return mask.sum(axis=1, dtype=np.int64)
    least, most = mask.min(), mask.max()
    if kind == "f" and (least < 0 or not np.any(mask)):
        return _counts(_shown_by_sum(mask, least, most))
    if kind not in "iuf" or not least >= 0:
        raise NoLengths(f"attention_mask of {mask.dtype} with values down to {least}")
    if most > 1 and np.any((mask != 0) & (mask != mask.max(axis=1, keepdims=True))):
        return _runs(mask != 0, mask[:, 1:] == mask[:, :-1])
    return _counts(mask)


def _counts(mask: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(row) for row in mask], np.int64)  # row by row is several times faster than axis=-1


def _padding_on_device(mask: Any) -> Any:
    if not mask.is_floating_point():
        return (mask != 0).sum(-1)
    return (mask > _HIDES).where((mask < 0).any(), mask != 0).sum(-1)


def is_doubtful(mask: Any) -> Any:
    """Whether a mask [b, s] on a device numbers documents, which only the host can separate: a tensor [], or None for no."""
    if mask.ndim != 2 or str(mask.dtype) == "torch.bool" or mask.is_floating_point() or not mask.numel():
        return None
    return ((mask != 0) & (mask != mask.amax(-1, keepdim=True))).any()


def _shown_by_sum(mask: np.ndarray, least: Any, most: Any) -> np.ndarray:
    """The keys that a mask which is added to the scores leaves visible."""
    if not least <= _HIDES or most > 0:
        raise NoLengths(f"attention_mask of {mask.dtype} from {least} to {most}: neither 0 and 1, nor 0 and minus infinity")
    return mask > _HIDES


# ---- pairs ----------------------------------------------------------------------------------------------------------


def _seen(views: np.ndarray) -> np.ndarray:
    """Lengths from masks of pairs [n, s, s], or of keys [n, 1, s]."""
    if views.shape[-2] != views.shape[-1]:
        keys = views[:, 0]
        if (keys == keys.flat[0]).all():  # nothing is hidden, because no model trains on hidden tokens alone
            return np.full(len(keys), keys.shape[1], np.int64)
        if not keys.min() < 0:
            raise NoLengths(f"attention_mask {list(views.shape)} of {views.dtype}: 1 may mean seen or hidden; give [b, s]")
        return _counts(_shown_by_sum(keys, keys.min(), keys.max()))
    itself, before, after = (np.diagonal(views, offset, -2, -1) for offset in (0, -1, 1))
    if all((part == itself.flat[0]).all() for part in (itself, before, after)):
        return np.full(len(views), views.shape[-1], np.int64)
    least = min(part.min() for part in (itself, before, after) if part.size)
    if least < 0:
        itself, before, after = (part > _HIDES for part in (itself, before, after))
    elif (after == after.flat[0]).all():  # a causal mask hides the next token, so this is its value for hidden
        hidden = bool(after.flat[0])
        itself, before, after = ((part != 0) != hidden for part in (itself, before, after))
    else:
        raise NoLengths(f"attention_mask {list(views.shape)} of {views.dtype}: 1 may mean seen or hidden; give [b, s]")
    joined = before & itself[:, 1:] & itself[:, :-1]
    if after.any() and not np.array_equal(after & itself[:, 1:] & itself[:, :-1], joined):
        raise NoLengths(f"attention_mask {list(views.shape)} is neither causal nor bidirectional in each document")
    return _runs(itself, joined)


def _runs(real: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Lengths of the runs of real tokens in each row [n, s]; ``joined`` [n, s - 1]: whether a token continues the one before."""
    begins = real.copy()
    begins[:, 1:] &= ~(joined & real[:, :-1])
    return np.bincount(np.cumsum(begins)[real.ravel()])[1:].astype(np.int64)


# ---- where positions begin again ------------------------------------------------------------------------------------


def position_lengths(positions: Array, shape: tuple[int, int]) -> Array | None:
    """Lengths of the documents in rows [b, s] whose positions restart; None if none do, or if the shape does not fit.

    Raises:
        NoLengths: The positions never rise.
    """
    if positions.ndim == 1:
        positions = positions[None]
    if positions.ndim != 2 or tuple(positions.shape) not in (shape, (1, shape[1])) or shape[1] < 2 or not shape[0]:
        return None
    rises = positions[:, 1:] == positions[:, :-1] + 1
    if not isinstance(positions, np.ndarray):
        return _positions_on_device(rises, shape)
    if rises.all():
        return None
    if not rises.any():
        raise NoLengths("position_ids never rise, so the documents are unknown")
    lengths = _runs(np.ones(positions.shape, np.bool_), rises)
    return np.tile(lengths, shape[0] // len(positions))


def _positions_on_device(rises: Any, shape: tuple[int, int]) -> Any:
    """One length for each position, most of them 0, so that the number of documents need not be read back."""
    import torch

    begins = torch.nn.functional.pad(~rises, (1, 0), value=True).expand(shape).reshape(-1)
    return torch.zeros(len(begins), dtype=torch.int64, device=begins.device).scatter_add_(
        0, begins.cumsum(0) - 1, torch.ones_like(begins, dtype=torch.int64)
    )


# ---- rows of different lengths --------------------------------------------------------------------------------------


def ragged_lengths(tokens: Any) -> tuple[Array, int] | None:
    """Lengths, and the number of positions, of a nested tensor or of lists of different lengths; None for a regular array."""
    if isinstance(tokens, (list, tuple)):
        return _list_lengths(tokens)
    if not getattr(tokens, "is_nested", False):
        return None
    if str(tokens.layout) != "torch.jagged":
        tokens = [part.shape[0] for part in tokens.unbind()]
        return np.array(tokens, np.int64), sum(tokens)
    lengths = tokens.lengths()
    lengths = tokens.offsets().diff() if lengths is None else lengths
    return (lengths.numpy() if lengths.is_cpu else lengths), tokens.values().shape[0]


def _list_lengths(rows: Any) -> tuple[np.ndarray, int] | None:
    if not rows or not all(hasattr(row, "__len__") and not isinstance(row, (str, Mapping)) for row in rows):
        return None
    if len(set(widths := [len(row) for row in rows])) == 1:
        return None
    return np.array(widths, np.int64), sum(widths)
