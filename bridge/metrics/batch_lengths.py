"""Reads the lengths of the sequences and images in one micro-batch, in any of its usual forms.

A micro-batch is a mapping (a dict, a ``BatchEncoding``), an object with attributes (a dataclass, a named tuple), a list of
such samples, or a tuple (inputs, labels).  The first of these that it has decides:

1. Packed sequences: ``cu_seqlens_unpadded``, ``cu_seqlens_q`` or ``cu_seqlens``, in the batch or in its
   ``packed_seq_params`` (megatron-core's ``PackedSeqParams``).  Offsets of shape [n + 1], [1, n + 1] or [b, n + 1];
   they end at the matching ``*_argmin`` if there is one, and at the first decrease (the filler, -1 in Megatron-Bridge).
   Where both padded and unpadded offsets exist, the unpadded ones are the real lengths.
2. An ``attention_mask``, see :mod:`bridge.metrics.batch_masks`.
3. ``cu_seq_lens_q``, or ``position_ids`` (``positions``) that restart, with ``input_ids`` (``input``): transformers and
   torchtitan separate documents there.  (megatron-core does not, so with ``tokens`` they are ignored.)
4. ``tokens``, ``input_ids`` or ``input``: b sequences of s tokens; the rows of a nested tensor or of lists.  For audio
   (``input_features``, ``input_values``) without any of these: ``decoder_input_ids``, else ``labels``.

``loss_mask`` is never used: a prompt is not learned from, but it is computed.

Lengths must be possible: offsets are integers that begin at 0, do not decrease, and end within the positions.  Others are
refused before anything of the batch is counted; if only the device knows, a tensor there records it (``unread``).

``projected_tokens`` (a number, or a tensor [] that is not read back) is the number of positions that the output layer projects,
in loops that leave out positions without a label.

Images: ``image_grid_thw`` and ``video_grid_thw`` [n, 3] or [b, n, 3], in the batch or in its ``visual_inputs``.  A row
(t, h, w) is t frames of h x w patches, and attention stays within a frame.  Pixels [n, c, h, w] without a grid are n images.

On the CPU everything is a numpy view without a copy.  Tensors on a device are never read back: their lengths stay tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge.metrics.batch_masks import NoLengths, is_doubtful, mask_lengths, position_lengths, ragged_lengths

__all__ = ["BatchLengths", "NoLengths", "read_lengths"]

Array = Any  # numpy int64 array on the CPU, torch int64 tensor on a device

OFFSET_NAMES = ("cu_seqlens_unpadded", "cu_seqlens_q", "cu_seqlens")
_PADDED_OFFSETS = ("cu_seqlens_q_padded", "cu_seqlens_padded", "cu_seqlens")
FLATTENED = "cu_seq_lens_q"
POSITION_NAMES = ("position_ids", "positions")
TOKEN_NAMES = ("tokens", "input_ids", "input")
_GRIDS = ("image_grid_thw", "video_grid_thw")
_SOUND = ("input_features", "input_values")
_DECODED = ("decoder_input_ids", "decoder_attention_mask", "labels")
#: The label of a position that nothing is learned from.
NO_LABEL = -100
_PIXELS = ("pixel_values", "pixel_values_videos", "images")
PROJECTED = "projected_tokens"
IMAGE_NAMES = (*_GRIDS, *_PIXELS, "visual_inputs")
_NAMES = (
    *(name + end for name in OFFSET_NAMES for end in ("", "_argmin")),
    *("packed_seq_params", "attention_mask", "visual_inputs", FLATTENED, PROJECTED),
    *(*_PADDED_OFFSETS, *POSITION_NAMES, *TOKEN_NAMES, *_GRIDS, *_PIXELS, *_SOUND, *_DECODED),
)


class BatchLengths(NamedTuple):
    """The lengths in one micro-batch.

    Attributes:
        sequences: real tokens of each sequence, int64 [n]; zeros (empty segments) may occur and do not count.
        positions: number of computed token positions, padding included; a tensor [] if only the device knows it.
        image_patches: patches of one frame of each image or video, int64 [m]; None without images.
        image_frames: frames of each of them, int64 [m].
        unmeasured_images: whether there are pixels without a grid, so that their patches are unknown.
        number_of_images: the number of images without a grid; None if unknown.
        unread: a tensor [] on a device, true if the lengths are impossible and must not count; None: they are possible.
        projected: number of positions that the output layer projects; None: not given.
    """

    sequences: Array
    positions: int | Any
    image_patches: Array | None = None
    image_frames: Array | None = None
    unmeasured_images: bool = False
    unread: Any | None = None
    number_of_images: int | None = None
    projected: int | Any | None = None

    @property
    def on_host(self) -> bool:
        """Whether everything is known on the host."""
        return all(isinstance(one, (np.ndarray, int, type(None))) for one in (*self[:4], self.unread, self.projected))


def read_lengths(batch: Any, *, images: bool = True) -> BatchLengths | None:
    """The lengths in ``batch``.

    Args:
        batch: a micro-batch; ranks without data get None or an empty mapping, for which the result is None.
        images: whether to look for images.

    Raises:
        NoLengths: the batch does not have the lengths of its sequences, or they are impossible.
    """
    if batch is None or (isinstance(batch, Mapping) and not batch):
        return None
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return _several(batch, images)
    get = _getter(batch)  # an error that a custom batch raises here is not about lengths
    try:
        lengths = _packed(get) or _rows(get)
        if lengths is not None:
            if (some := get(PROJECTED)) is not None:
                lengths = lengths._replace(projected=_projected(some, lengths.positions))
            return lengths._replace(**_image_lengths(get)) if images else lengths
    except NoLengths:
        raise
    except Exception as error:  # foreign arrays may raise anything
        raise NoLengths(f"{type(error).__name__}: {error}") from error
    known = ", ".join((*OFFSET_NAMES, "attention_mask [b, s]", *TOKEN_NAMES[:2]))
    raise NoLengths(f"a {type(batch).__name__} without any of {known}")


def _several(batch: Sequence[Any], images: bool) -> BatchLengths | None:
    """The lengths in a list of samples, or in a tuple of inputs and labels, of which only the inputs have tokens."""
    if not batch:
        return None
    if isinstance(batch, tuple):
        inputs, *others = batch
        if any(_first(_getter(other), TOKEN_NAMES) is not None for other in others if not hasattr(other, "shape")):
            raise NoLengths("a tuple with tokens in several of its parts; give a list of them, or read=")
        batch = [inputs]
    if any(hasattr(sample, "shape") or isinstance(sample, (int, float, str)) for sample in batch):
        raise NoLengths(f"a {type(batch[0]).__name__} without a name that tells whether it holds tokens; give read=")
    found = [lengths for sample in batch if (lengths := read_lengths(sample, images=images)) is not None]
    return _joined(found) if found else None


def _joined(found: Sequence[BatchLengths]) -> BatchLengths:
    if len(found) == 1:
        return found[0]
    pictured = [one for one in found if one.image_patches is not None]
    return BatchLengths(
        _concatenated([one.sequences for one in found]),
        sum(one.positions for one in found),
        _concatenated([one.image_patches for one in pictured]) if pictured else None,
        _concatenated([one.image_frames for one in pictured]) if pictured else None,
        any(one.unmeasured_images for one in found),
        next((one.unread for one in found if one.unread is not None), None),
        _sum([one.number_of_images for one in found if one.unmeasured_images]),
        _sum([one.projected for one in found]),
    )


def _sum(numbers: Sequence[Any]) -> Any:
    """The sum; None if one of them is unknown, or if there are none."""
    return None if not numbers or any(number is None for number in numbers) else sum(numbers)


def _packed(get: Callable[[str], Any]) -> BatchLengths | None:
    """Lengths from offsets under Megatron's names; None if there are none."""
    packed = get("packed_seq_params")
    offsets_in = get if packed is None else _getter(packed)
    for name in OFFSET_NAMES:
        if (offsets := offsets_in(name)) is not None:
            tokens = _first(get, TOKEN_NAMES)
            if tokens is not None:
                return _segments(offsets, offsets_in(name + "_argmin"), name, _shape(_array(tokens)))
            padded = _first(offsets_in, _PADDED_OFFSETS)
            total = None if padded is None else _last_offset(_array(padded))
            return _segments(offsets, offsets_in(name + "_argmin"), name, total)
    return None


def _rows(get: Callable[[str], Any]) -> BatchLengths | None:
    """Lengths from a mask, positions or shapes; None if there are none."""
    mask, tokens = get("attention_mask"), _first(get, TOKEN_NAMES)
    if tokens is None and _first(get, _SOUND) is not None:
        mask, tokens = _heard(get)
    if tokens is None:
        if mask is None:
            return None
        mask = _array(mask)
        return BatchLengths(mask_lengths(mask, None), math.prod(mask.shape), unread=_unread(mask))
    if (ragged := ragged_lengths(tokens)) is not None:
        if mask is not None and (ragged_lengths(mask) is None or not _all_real(mask)):
            raise NoLengths("an attention_mask beside rows of different lengths; leave it out, or pad both")
        return BatchLengths(*ragged)
    tokens = _array(tokens)
    rows, width = shape = _shape(tokens)
    positions = rows * width
    if mask is not None:
        mask = _array(mask)
        return BatchLengths(mask_lengths(mask, shape), positions, unread=_unread(mask))
    if (offsets := get(FLATTENED)) is not None:
        return _segments(offsets, None, FLATTENED, shape)
    if get("tokens") is None and (ids := _first(get, POSITION_NAMES)) is not None:
        if (lengths := position_lengths(_array(ids), shape)) is not None:
            return BatchLengths(lengths, positions)
    return BatchLengths(np.full(rows, width, np.int64), positions)


def _heard(get: Callable[[str], Any]) -> tuple[Any, Any]:
    """Mask and tokens of the decoder of an audio model, whose attention_mask is one of audio frames."""
    tokens = get("decoder_input_ids")
    if tokens is not None:
        return get("decoder_attention_mask"), tokens
    labels = get("labels")
    return None if labels is None else _array(labels) != NO_LABEL, labels


def _shape(tokens: Any) -> tuple[int, int]:
    """Rows and columns of tokens [s] or [b, s].

    Raises:
        NoLengths: The tokens have another shape.
    """
    if tokens.ndim == 2:
        return tuple(tokens.shape)
    if tokens.ndim == 1:
        return 1, tokens.shape[0]
    raise NoLengths(f"tokens {list(tokens.shape)} are not [b, s]")


def _unread(mask: Any) -> Any:
    return None if isinstance(mask, np.ndarray) else is_doubtful(mask)


def _all_real(mask: Any) -> bool:
    if isinstance(mask, (list, tuple)):
        return all(all(row) for row in mask)
    return all(bool(part.all()) for part in mask.unbind())


def _getter(source: Any) -> Callable[[str], Any]:
    """A function that returns ``source[name]`` or ``source.name``; None if there is no such name."""
    if isinstance(source, Mapping):
        return source.get
    if hasattr(source, "keys") and hasattr(source, "get"):  # a TensorDict, which is no Mapping and raises without a default
        return lambda name: source.get(name, None)
    return {name: getattr(source, name, None) for name in _NAMES}.get


def _first(get: Callable[[str], Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = get(name)
        if value is not None:
            return value
    return None


def _array(value: Any) -> Array:
    """A numpy view of a value on the CPU; a tensor on a device is returned as it is.

    Raises:
        NoLengths: The value is neither an array nor a list of numbers.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "is_cpu"):
        if not value.is_cpu:
            return value
        try:
            return value.numpy()
        except (RuntimeError, TypeError):  # with a gradient; of a type that numpy does not have
            return value.detach().float().numpy()
    if isinstance(value, (list, tuple)):
        return np.asarray(value)
    if not hasattr(value, "ndim"):
        raise NoLengths(f"a {type(value).__name__} where an array was expected")
    return value


def _segments(offsets: Any, argmin: Any, name: str, bound: Any) -> BatchLengths:
    """Lengths between the offsets in each row, up to ``argmin`` and to the first decrease.

    Args:
        bound: shape of the tokens, or the number of positions; None: the last offset is the number of positions.

    Raises:
        NoLengths: The offsets are impossible.
    """
    offsets = _array(offsets)
    if argmin is not None and isinstance(ends := _array(argmin), np.ndarray):
        # Megatron-Bridge keeps it on the host for this purpose. Offsets without a filler have argmin 0.
        if offsets.ndim == 1 or offsets.shape[0] == 1:
            offsets = offsets[..., : ends.item() or None]
    if not isinstance(offsets, np.ndarray):
        return _segments_on_device(offsets, bound)
    if offsets.dtype.kind not in "iu" or offsets.ndim not in (1, 2) or not offsets.shape[-1]:
        raise NoLengths(f"{name} {list(offsets.shape)} of {offsets.dtype} are not offsets [n + 1] or [b, n + 1]")
    offsets = offsets.astype(np.int64)
    if offsets.ndim == 2 and offsets.shape[0] == 1:
        offsets = offsets[0]
    if np.any(offsets[..., 0]):
        raise NoLengths(f"{name} begins at {offsets[..., 0].max() or offsets[..., 0].min()}; offsets begin at 0")
    lengths = offsets[..., 1:] - offsets[..., :-1]
    if lengths.size and lengths.item(lengths.argmin()) < 0:
        inside = np.logical_and.accumulate(lengths >= 0, axis=-1)
        if np.any(offsets[..., 1:][~inside] > 0):
            raise NoLengths(f"{name} falls and rises again; offsets must not decrease before their filler, -1 or 0")
        lengths = lengths[inside]
    return BatchLengths(lengths.reshape(-1), _within(offsets.max(-1), bound, name))


def _within(ends: Any, bound: Any, name: str) -> int:
    """The number of positions, after a check that the offsets of all rows end within them."""
    total = int(ends.sum())
    if bound is None:
        return total
    rows, width = bound if isinstance(bound, tuple) else (1, bound)
    if not isinstance(width, int):  # only the device knows it
        return total
    last = int(ends.max(initial=0))
    if total > rows * width or (ends.ndim and len(ends) == rows and last > width):
        raise NoLengths(f"{name} ends at {last} of {width} positions")
    return rows * width


def _segments_on_device(offsets: Any, bound: Any) -> BatchLengths:
    lengths = offsets[..., 1:].long() - offsets[..., :-1]
    lengths = lengths.clamp_(min=0).reshape(-1)  # the decrease at the filler becomes an empty segment
    total = offsets.amax(-1).sum()
    positions = total if bound is None else bound[0] * bound[1] if isinstance(bound, tuple) else bound
    unread = (offsets[..., 0] != 0).any() | (lengths.sum() > positions)
    return BatchLengths(lengths, positions, unread=unread)


def _last_offset(offsets: Array) -> int | Any:
    """Number of positions in a packed batch without tokens: the sum of the last padded offset of each row."""
    if isinstance(offsets, np.ndarray):
        return int(offsets.max(axis=-1, initial=0).sum())
    return offsets.amax(-1).sum()


def _projected(number: Any, positions: Any) -> Any:
    """The number of projected positions, checked; a tensor on a device stays there."""
    if hasattr(number, "is_cpu") and not number.is_cpu:
        return number.long()
    found = int(number)
    if found != number or found < 0 or (isinstance(positions, int) and found > positions):
        raise NoLengths(f"{PROJECTED}={number} of {positions} positions")
    return found


def _image_lengths(get: Callable[[str], Any]) -> dict[str, Any]:
    visual = get("visual_inputs")
    sources = (get,) if visual is None else (get, _getter(visual))
    grids = [grid for source in sources for name in _GRIDS if (grid := source(name)) is not None]
    if not grids:
        pixels = [found for source in sources if (found := _first(source, _PIXELS)) is not None]
        return {"unmeasured_images": bool(pixels), "number_of_images": _number_of_images(pixels)}
    tables = [_array(grid).reshape(-1, 3) for grid in grids]
    if any(isinstance(table, np.ndarray) and (table.dtype.kind not in "iu" or (table < 0).any()) for table in tables):
        raise NoLengths(f"{' or '.join(_GRIDS)} must be numbers of frames and patches")
    return {
        "image_patches": _concatenated([table[:, 1] * table[:, 2] for table in tables]),
        "image_frames": _concatenated([table[:, 0] for table in tables]),
    }


def _number_of_images(pixels: Sequence[Any]) -> int | None:
    """The number of images in pixels [n, channels, height, width]; None for any other shape."""
    if not all(getattr(one, "ndim", 0) == 4 for one in pixels):
        return None
    return sum(int(one.shape[0]) for one in pixels)


def _concatenated(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate(arrays)
    import torch

    device = next(array.device for array in arrays if not isinstance(array, np.ndarray))
    return torch.cat([torch.as_tensor(array, device=device) for array in arrays])
