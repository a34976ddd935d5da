"""Cutting text into patches of bytes, and what the patches of a corpus look like.

Fixed strides (MegaByte, arXiv:2305.07185), spaces (SpaceByte, arXiv:2404.14408), or the entropy of the next byte (BLT,
arXiv:2412.09871, section 2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

from bridge.flops.shapes import ConfigError


@dataclass(frozen=True)
class PatchStatistics:
    """How a corpus falls into patches.

    Attributes:
        bytes, patches: sums.
        mean: bytes per patch.
        median, longest: bytes.
        histogram: patch length -> number of patches, shortest first.
    """

    bytes: int
    patches: int
    mean: float
    median: int
    longest: int
    histogram: dict[int, int]

    @classmethod
    def of(cls, patch_lengths: Iterable[int]) -> PatchStatistics:
        """From the lengths of all patches, in bytes."""
        lengths = sorted(patch_lengths)
        if not lengths or lengths[0] <= 0:
            raise ConfigError("patch lengths must be positive, and there must be one")
        total, median = sum(lengths), lengths[(len(lengths) - 1) // 2]
        return cls(total, len(lengths), total / len(lengths), median, lengths[-1], dict(Counter(lengths)))


def strided_patches(data: bytes, stride: int) -> list[int]:
    """Patches of a fixed number of bytes (MegaByte, arXiv:2305.07185); the last may be shorter."""
    if stride <= 0:
        raise ConfigError(f"stride={stride!r} must be a positive number of bytes")
    full, rest = divmod(len(data), stride)
    return [stride] * full + [rest] * bool(rest)


def _is_space_like(byte: int) -> bool:
    """Not a letter, not a digit, not a UTF-8 continuation byte (SpaceByte, arXiv:2404.14408)."""
    return not (48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or 128 <= byte < 192)


def space_patches(data: bytes) -> list[int]:
    """A patch begins after a space-like byte that something else follows: words with the spaces and punctuation after them."""
    starts = [i + 1 for i in range(len(data) - 1) if _is_space_like(data[i]) and not _is_space_like(data[i + 1])]
    return _lengths([0, *starts], len(data))


def entropy_patches(entropies: Sequence[float], threshold: float) -> list[int]:
    """A patch begins at every byte whose entropy, given the bytes before it, is above the threshold (BLT, section 2.3)."""
    return _lengths([0, *(i for i in range(1, len(entropies)) if entropies[i] > threshold)], len(entropies))


def threshold_for(entropies: Sequence[float], patch_size: float) -> float:
    """The entropy threshold that makes patches of about ``patch_size`` bytes on average."""
    if patch_size < 1 or len(entropies) < 2:
        raise ConfigError(f"patch_size={patch_size!r} must be at least 1 byte, for text of at least 2 bytes")
    beginnings = max(round(len(entropies) / patch_size) - 1, 0)
    ranked = sorted(entropies[1:], reverse=True)
    return ranked[beginnings] if beginnings < len(ranked) else min(ranked) - 1.0


def next_byte_entropies(data: bytes, order: int = 3) -> list[float]:
    """Entropy of every next byte in nats, from the counts of the text itself given the ``order`` bytes before it.

    Use it where no entropy model is at hand: it finds the same kind of boundaries, at the beginnings of words and after
    punctuation.
    """
    if order < 1:
        raise ConfigError(f"order={order!r} must be at least one byte of context")
    contexts = [data[max(i - order, 0) : i] for i in range(len(data))]
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for context, byte in zip(contexts, data, strict=True):
        counts[context][byte] += 1
    entropies = {}
    for context, following in counts.items():
        total = following.total()
        entropies[context] = log(total) - sum(n * log(n) for n in following.values()) / total
    return [entropies[context] for context in contexts]


def _lengths(starts: Sequence[int], end: int) -> list[int]:
    return [after - start for start, after in zip(starts, [*starts[1:], end], strict=True) if after > start]
