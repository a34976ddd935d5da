"""Checks the lengths of a batch: whatever a caller holds them in becomes exact Python integers, or raises one ConfigError.

A numpy integer would overflow silently in later arithmetic: 1,024 sequences of 8,192 tokens are 3.8e17 FLOPs in a model of
8 billion parameters and 2.0e19 in one of 405 billion, which no int64 holds.

numpy is used where its arrays are given and is never imported here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from fractions import Fraction
from operator import add, mul
from typing import Any

from bridge.flops.components.audio_encoder import POSITIONS
from bridge.flops.shapes import ConfigError, short
from bridge.flops.statistics import Histogram

#: From this many lengths on, equal ones are grouped before statistics are evaluated.
MANY = 256

#: Iterables that are no lists of lengths.
_NO_LISTS = (str, bytes, bytearray, Mapping, Set)


def exact(name: str, value: Any) -> int | Fraction:
    """A number of any library (numpy scalar, tensor [], float, Decimal) as the int, or else the Fraction, that it is.

    Raises:
        ConfigError: It is not a number, or not finite.
    """
    try:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, (bool, str)):
            raise TypeError
        fraction = Fraction(plain)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ConfigError(f"{name}={short(value)} must be a finite number") from None
    return fraction.numerator if fraction.denominator == 1 else fraction


def amount(name: str, value: Any) -> int | Fraction:
    """The same, 0 or more."""
    if type(value) is int and value >= 0:
        return value
    found = exact(name, value)
    if found < 0:
        raise ConfigError(f"{name}={short(value)} must not be negative")
    return found


def whole(name: str, value: Any) -> int:
    """The same, a whole number."""
    found = amount(name, value)
    if isinstance(found, Fraction):
        raise ConfigError(f"{name}={short(value)} must be a whole number")
    return found


def exact_vector(vector: Iterable[Any]) -> list[int | Fraction]:
    """A vector of statistics in Python numbers."""
    return [exact("vector", value) for value in vector]


def whole_lengths(name: str, lengths: Any) -> Any:
    """The lengths in order: Python integers, 0 or more, or a numpy int64 array of many.

    Args:
        name: what an error calls them.
        lengths: a list, tuple, range, iterator, or one-dimensional array or tensor.

    Raises:
        ConfigError: Anything else, or a length that is negative, a fraction, a bool or not a number.
    """
    if type(lengths) is not list and type(lengths) is not tuple:
        lengths = _listed(name, lengths)
    if not isinstance(lengths, (list, tuple)) or not lengths or (set(map(type, lengths)) == {int} and min(lengths) >= 0):
        return lengths
    return [whole(name, length) for length in lengths]


def _listed(name: str, lengths: Any) -> Any:
    """A list of any iterable, or a numpy int64 array of a long one."""
    dimensions = getattr(lengths, "ndim", 1)
    if dimensions != 1 or isinstance(lengths, _NO_LISTS) or not hasattr(lengths, "__iter__"):
        form = f"an array of {dimensions} dimensions" if dimensions != 1 else short(lengths)
        raise ConfigError(f"{name} must be a list of whole numbers, one length each, not {form}")
    if not _is_many_in_numpy(lengths):
        return lengths.tolist() if hasattr(lengths, "tolist") else list(lengths)
    if lengths.min() < 0:
        whole(name, int(lengths.min()))
    return lengths.astype("int64", copy=False)


def _is_many_in_numpy(lengths: Any) -> bool:
    numpy = sys.modules.get("numpy")
    is_array = numpy is not None and type(lengths) is numpy.ndarray and lengths.dtype.kind in "iu"
    return is_array and lengths.size >= MANY and int(lengths.max()) < 2**63


def gathered(lengths: Any) -> Sequence[int] | Histogram:
    """The argument of ``Statistic.sum``: the lengths themselves, or from ``MANY`` on their histogram."""
    if len(lengths) < MANY:
        return lengths
    if isinstance(lengths, (list, tuple)):
        times = Counter(lengths)
        return Histogram(tuple(times), tuple(times.values()), max(times), len(lengths))
    numpy, longest = sys.modules["numpy"], int(lengths.max())
    if longest < 4 * lengths.size:
        times = numpy.bincount(lengths)
        values = times.nonzero()[0]
        times = times[values]
    else:  # a table up to the longest would be larger than the batch
        values, times = numpy.unique(lengths, return_counts=True)
    return Histogram(values, times, longest, lengths.size)


def batch_lengths(
    sequence_lengths: Iterable[int],
    image_patches: Iterable[int] = (),
    encoder_lengths: Iterable[int] = (),
    audio_frames: Iterable[int] = (),
    byte_patches: Iterable[int] = (),
) -> dict[str, Sequence[int] | Histogram]:
    """The lengths of a batch by what statistics sum over; the arguments are those of ``Plan.measure``.

    Raises:
        ConfigError: Some lengths are invalid, or encoder_lengths does not have one entry per sequence.
    """
    sequences, audio = whole_lengths("sequence_lengths", sequence_lengths), whole_lengths("audio_frames", audio_frames)
    encoder = whole_lengths("encoder_lengths", encoder_lengths)
    if len(encoder) and len(sequences) and len(encoder) != len(sequences):
        raise ConfigError(f"encoder_lengths has {len(encoder)} entries, sequence_lengths {len(sequences)}: give one per sequence")
    counted = gathered(sequences)
    batch = {
        "sequences": counted,
        "projected": counted,
        "images": gathered(whole_lengths("image_patches", image_patches)),
        "audio": gathered(audio),
        "micro_batches": (1,) if len(sequences) else (),
        "longest": (int(max(sequences)),) if len(sequences) else (),
    }
    batch |= _byte_patches(sequences, whole_lengths("byte_patches", byte_patches))
    if not len(encoder) and not len(audio):
        return batch | {"encoder": (), "cross": (), "joint": ()}
    # In order, and as Python integers: products of two must not overflow either.
    queries, keys = in_python(sequences), in_python(encoder) or list(map(POSITIONS.of, in_python(audio)))
    pairs = {"encoder": keys, "cross": list(map(mul, queries, keys)), "joint": list(map(add, queries, keys))}
    return batch | {over: gathered(values) for over, values in pairs.items()}


def _byte_patches(sequences: Any, patches: Any) -> dict[str, Any]:
    if len(patches) and len(patches) != len(sequences):
        raise ConfigError(f"byte_patches has {len(patches)} entries, sequence_lengths {len(sequences)}: give one per sequence")
    products = list(map(mul, in_python(sequences), in_python(patches))) if len(patches) else ()
    return {"byte_patches": gathered(patches), "cross_products": gathered(products)}


def in_python(lengths: Any) -> Sequence[int]:
    """In order, as Python integers."""
    return lengths if isinstance(lengths, (list, tuple)) else lengths.tolist()
