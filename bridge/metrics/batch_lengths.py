"""Reads the lengths of the sequences and images in one micro-batch, whatever form it comes in.

Looked for, in this order; the first that is there decides:

1. Packed sequences: ``cu_seqlens_unpadded``, ``cu_seqlens_q`` or ``cu_seqlens``, in the batch or in its
   ``packed_seq_params`` (megatron-core's ``PackedSeqParams``).  Offsets of shape [n + 1], [1, n + 1] or [b, n + 1];
   they end at the matching ``*_argmin`` if there is one, and at the first decrease (the filler, -1 in Megatron-Bridge).
   Where both padded and unpadded offsets exist, the unpadded ones are the real lengths.
2. A two-dimensional ``attention_mask`` [b, s], non-zero on real tokens.  (A mask [b, 1, s, s] says who sees whom, not
   what is padding, and is left aside.)
3. The shape of ``tokens`` or ``input_ids``: b sequences of s tokens.

``loss_mask`` is never used: a prompt is not learned from but computed all the same.

Images: ``image_grid_thw`` and ``video_grid_thw`` [n, 3] or [b, n, 3], in the batch or in its ``visual_inputs``.  A row
(t, h, w) is t frames of h x w patches, and each frame attends alone.

On the CPU everything is numpy, without a copy.  Tensors on a device are never read back: their lengths stay tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Union

import numpy as np

Array = Any  # numpy int64 array on the CPU, torch int64 tensor on a device

_OFFSETS = ("cu_seqlens_unpadded", "cu_seqlens_q", "cu_seqlens")
_PADDED_OFFSETS = ("cu_seqlens_q_padded", "cu_seqlens_padded", "cu_seqlens")
_TOKENS = ("tokens", "input_ids")
_GRIDS = ("image_grid_thw", "video_grid_thw")
_PIXELS = ("pixel_values", "pixel_values_videos", "images")


class NoLengths(ValueError):
    """A micro-batch in which no lengths were found, or lengths that contradict each other."""


class BatchLengths(NamedTuple):
    """What one micro-batch holds.

    Attributes:
        sequences: real tokens of each sequence, int64 [n]; zeros (empty segments) may occur and count for nothing.
        positions: token positions that are computed, padding included; a tensor [] where only the device knows.
        image_patches: patches of one frame of each image, int64 [m]; None without images.
        image_frames: how many frames that size each of these stands for, int64 [m].
        unmeasured_images: True if there are pixels but no grid that says how many patches they are.
    """

    sequences: Array
    positions: Union[int, Any]
    image_patches: Optional[Array] = None
    image_frames: Optional[Array] = None
    unmeasured_images: bool = False


def read_lengths(batch: Any, *, images: bool = True) -> Optional[BatchLengths]:
    """The lengths in ``batch``, a mapping or an object with attributes of the same names.

    Args:
        batch: a micro-batch; None or an empty mapping is none, as ranks without data get it.
        images: whether to look for images.

    Raises:
        NoLengths: nothing in the batch tells how long its sequences are.
    """
    if batch is None:
        return None
    get = _getter(batch)
    packed = get("packed_seq_params")
    tokens = _first(get, _TOKENS)
    offsets_in = get if packed is None else _getter(packed)
    for name in _OFFSETS:
        offsets = offsets_in(name)
        if offsets is not None:
            sequences = _segment_lengths(_array(offsets), offsets_in(name + "_argmin"))
            if tokens is not None:
                positions = _size(tokens)
            else:
                positions = _last_offset(_array(_first(offsets_in, _PADDED_OFFSETS)), sequences)
            break
    else:
        mask = get("attention_mask")
        if mask is not None and mask.ndim == 2:
            positions = _size(mask)
            sequences = _row_counts(_array(mask))
        elif tokens is not None:
            positions = _size(tokens)
            rows = 1 if tokens.ndim == 1 else tokens.shape[0]
            sequences = np.full(rows, positions // rows if rows else 0, np.int64)
        elif isinstance(batch, Mapping) and not batch:
            return None
        else:
            known = ", ".join((*_OFFSETS, "attention_mask [b, s]", *_TOKENS))
            raise NoLengths(f"a {type(batch).__name__} without any of {known}")
    return BatchLengths(sequences, positions, *_image_lengths(get)) if images else BatchLengths(sequences, positions)


def _getter(source: Any) -> Callable[[str], Any]:
    """``source[name]`` or ``source.name``; None where there is no such name."""
    if isinstance(source, Mapping):
        return source.get
    return lambda name: getattr(source, name, None)


def _first(get: Callable[[str], Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = get(name)
        if value is not None:
            return value
    return None


def _array(value: Any) -> Array:
    """A numpy view of what is on the CPU; a tensor on a device stays what it is."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "is_cpu"):
        return value.numpy() if value.is_cpu else value
    return np.asarray(value, np.int64)


def _size(value: Any) -> int:
    """Elements of a tensor or an array, from its shape alone."""
    return value.size if isinstance(value, np.ndarray) else value.numel()


def _row_counts(mask: Array) -> Array:
    """Non-zero entries of each row."""
    if isinstance(mask, np.ndarray):
        return (mask if mask.dtype == np.bool_ else mask != 0).sum(-1)
    return (mask != 0).sum(-1)


def _segment_lengths(offsets: Array, argmin: Any) -> Array:
    """Differences of the offsets in each row, up to ``argmin`` and to the first decrease."""
    if argmin is not None and isinstance(ends := _array(argmin), np.ndarray):
        # Megatron-Bridge keeps it on the host for this very use. 0 is the argmin of offsets without a filler.
        if offsets.ndim == 1 or offsets.shape[0] == 1:
            offsets = offsets[..., : ends.item() or None]
    if not isinstance(offsets, np.ndarray):
        lengths = offsets[..., 1:].long() - offsets[..., :-1]
        return lengths.clamp_(min=0).reshape(-1)  # the filler's step down becomes an empty segment, unseen
    if offsets.ndim == 2 and offsets.shape[0] == 1:
        offsets = offsets[0]
    lengths = (offsets[..., 1:] - offsets[..., :-1]).astype(np.int64)
    if lengths.size and lengths.item(lengths.argmin()) < 0:
        inside = np.logical_and.accumulate(lengths >= 0, axis=-1)
        if np.any(lengths[~inside] > 0):
            raise NoLengths("cu_seqlens falls and rises again; offsets must not decrease before their filler")
        lengths = lengths[inside]
    return lengths.reshape(-1) if lengths.ndim > 1 else lengths


def _last_offset(offsets: Array, sequences: Array) -> Union[int, Any]:
    """Positions of a packed batch without tokens: the last padded offset of each row."""
    if isinstance(offsets, np.ndarray):
        return max(int(np.maximum.reduce(offsets, axis=-1, initial=0).sum()), int(sequences.sum()))
    return offsets.amax(-1).sum()


def _image_lengths(get: Callable[[str], Any]) -> tuple[Optional[Array], Optional[Array], bool]:
    visual = get("visual_inputs")
    sources = (get,) if visual is None else (get, _getter(visual))
    grids = [grid for source in sources for name in _GRIDS if (grid := source(name)) is not None]
    if not grids:
        return None, None, any(_first(source, _PIXELS) is not None for source in sources)
    tables = [_array(grid).reshape(-1, 3) for grid in grids]
    patches = [table[:, 1] * table[:, 2] for table in tables]
    frames = [table[:, 0] for table in tables]
    if len(tables) == 1:
        return patches[0], frames[0], False
    if all(isinstance(table, np.ndarray) for table in tables):
        return np.concatenate(patches), np.concatenate(frames), False
    import torch

    return torch.cat([torch.as_tensor(p) for p in patches]), torch.cat([torch.as_tensor(f) for f in frames]), False
