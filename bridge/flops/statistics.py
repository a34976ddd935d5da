"""Additive batch statistics: the only thing a plan needs to know about a batch.

A statistic is a sum over the sequences (or images) that ran of an integer function of one length.  Sums of sums are
sums, so statistics add over micro-batches, steps and ranks without loss; means of lengths do not.

Every formula is plain integer arithmetic (``+ - * //`` and comparisons), so the same line evaluates a Python integer
and a numpy array of lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bridge.flops.choices import Choice

Length = Any  # an int, or a numpy array of int64: the formulas below are the same for both


def triangle(n: Length) -> Length:
    """T(n) = n (n + 1) / 2, the causal pairs of a sequence of n tokens."""
    return n * (n + 1) // 2


def clip(n: Length) -> Length:
    """max(n, 0)."""
    return n * (n > 0)


def smaller(n: Length, limit: int) -> Length:
    """min(n, limit)."""
    return n - clip(n - limit)


def window_pairs(s: Length, window: int) -> Length:
    """Pairs of a causal sequence of s tokens in which the key is one of the last ``window`` tokens, itself included."""
    return triangle(s) - triangle(clip(s - window))


def doubled_window_area(s: Length, window: int) -> Length:
    """2 s w - w^2 with w = min(window, s): twice the area MaxText gives a sliding window (PR 3592)."""
    w = smaller(s, window)
    return 2 * s * w - w * w


def doubled_prefix_area(s: Length, window: int) -> Length:
    """2 s W - W^2, also for sequences shorter than the window: the area MaxText gives DeepSeek-V4's window."""
    return 2 * s * window - window * window


def chunk_pairs(s: Length, chunk: int) -> Length:
    """Causal pairs when attention is confined to chunks of ``chunk`` tokens (Llama 4)."""
    return s // chunk * triangle(chunk) + triangle(s % chunk)


def chunk_squares(s: Length, chunk: int) -> Length:
    """All pairs inside chunks: the sum of the squares of the chunk lengths."""
    return s // chunk * chunk * chunk + (s % chunk) ** 2


def compressed_pairs(s: Length, ratio: int) -> Length:
    """Sum over positions t = 1..s of floor(t / ratio): keys that stand for ``ratio`` finished tokens each."""
    blocks = s // ratio
    return ratio * (blocks * (blocks - 1) // 2) + blocks * (s % ratio + 1)


def compressed_topk_pairs(s: Length, ratio: int, topk: int) -> Length:
    """Sum over positions t = 1..s of min(topk, floor(t / ratio))."""
    return compressed_pairs(s, ratio) - compressed_pairs(clip(s - topk * ratio), ratio)


def doubled_compressed_topk_area(s: Length, ratio: int, topk: int) -> Length:
    """2 s t - ratio t^2 with t = min(topk, s // ratio): Megatron's continuous form of the sum above, doubled."""
    t = smaller(s // ratio, topk)
    return 2 * s * t - ratio * t * t


def strided(s: Length, stride: int) -> Length:
    """Output positions of a convolution with kernel 3, padding 1 and ``stride`` over s frames (0 for none)."""
    return ((s - 1) // stride + 1) * (s > 0)


def pieces(s: Length, chunk: int) -> Length:
    """Chunks of a sequence, the last one filled up: what a kernel that works in chunks runs."""
    return (s + chunk - 1) // chunk


_FORMULAS: dict[str, Callable[..., Length]] = {
    "count": lambda s: s * 0 + 1,
    "length": lambda s: s,
    "square": lambda s: s * s,
    # Of lengths that a class token makes longer (CLIP, Llama 4's vision tower).
    "length_plus": lambda s, extra: s + extra,
    "square_plus": lambda s, extra: (s + extra) ** 2,
    # Of the sequences longer than a limit only.
    "length_over": lambda s, limit: s * (s > limit),
    "square_over": lambda s, limit: s * s * (s > limit),
    "causal_pairs": triangle,
    "window_pairs": window_pairs,
    # The same sum as a window's: the query picks its `topk` best keys instead of the last ones.
    "topk_pairs": window_pairs,
    # The same on both sides of a token, which counts once.
    "bidirectional_window_pairs": lambda s, window: 2 * window_pairs(s, window) - s,
    "doubled_window_area": doubled_window_area,
    "doubled_prefix_area": doubled_prefix_area,
    "chunk_pairs": chunk_pairs,
    "chunk_squares": chunk_squares,
    "compressed_pairs": compressed_pairs,
    "compressed_topk_pairs": compressed_topk_pairs,
    "doubled_compressed_topk_area": doubled_compressed_topk_area,
    # Of frames after a convolution of kernel 3, padding 1 and a stride.
    "strided": strided,
    "strided_square": lambda s, stride: strided(s, stride) ** 2,
    "strided_quotient": lambda s, stride, divisor: strided(s, stride) // divisor,
    "quotient": lambda s, divisor: s // divisor,
    "quotient_square": lambda s, divisor: (s // divisor) ** 2,
    "quotient_length": lambda s, divisor: s // divisor * s,
    # Of the chunks of a kernel that fills the last one up.
    "pieces": pieces,
    "pieces_square": lambda s, chunk: pieces(s, chunk) ** 2,
    "pieces_length": lambda s, chunk: pieces(s, chunk) * s,
    # Of the rows that routers gave to the experts of a layer.
    "assignments": lambda n, layer: n,
    "padding": lambda n, layer: n,
}


class Shape(Choice):
    """Which keys a query sees."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"
    BIDIRECTIONAL_PLUS = "bidirectional_plus"
    """All of a sequence that this many further tokens make longer (a class token)."""
    BIDIRECTIONAL_STRIDED = "bidirectional_strided"
    """All of what a convolution of this stride leaves."""
    BIDIRECTIONAL_CHUNK = "bidirectional_chunk"
    """All keys of the query's own chunk."""
    BIDIRECTIONAL_WINDOW = "bidirectional_window"
    """All that are less than so many tokens away (ModernBERT)."""
    WINDOW = "window"
    PREFIX_WINDOW = "prefix_window"
    """DeepSeek-V4's window beside its compressed keys."""
    TOPK = "topk"
    CHUNK = "chunk"
    COMPRESSED = "compressed"
    """One key for every block of this many finished tokens."""
    COMPRESSED_TOPK = "compressed_topk"
    INDEXER = "indexer"
    """What is looked at to choose the top-k."""
    COMPRESSED_INDEXER = "compressed_indexer"


class Over(Choice):
    """What a statistic is summed over."""

    SEQUENCES = "sequences"
    """Tokens of each sequence; of a packed one, of each document."""
    IMAGES = "images"
    """Patches of each image, of each frame of a video."""
    ENCODER = "encoder"
    """Tokens of each encoder's input."""
    CROSS = "cross"
    """Query tokens x encoder tokens of each sequence."""
    JOINT = "joint"
    """Their sum."""
    AUDIO = "audio"
    """Mel frames of each clip."""
    BYTE_PATCHES = "byte_patches"
    """Patches of bytes of each sequence."""
    CROSS_PRODUCTS = "cross_products"
    """Bytes x patches of each sequence."""
    MICRO_BATCHES = "micro_batches"
    """One, whatever they hold."""
    ROUTED = "routed"
    """Rows that routers gave to experts: no length says how many."""
    LONGEST = "longest"
    """Tokens of the longest sequence of each micro-batch: of work that all its sequences share."""
    PROJECTED = "projected"
    """Positions that an output layer projects if it leaves some out; all tokens if the batch does not say how many."""


_KNOWN_NAMES = {
    ("count", "sequences"): "sequences",
    ("length", "sequences"): "tokens",
    ("square", "sequences"): "squared_tokens",
    ("count", "images"): "images",
    ("length", "images"): "patches",
    ("square", "images"): "squared_patches",
    ("length", "encoder"): "encoder_tokens",
    ("square", "encoder"): "squared_encoder_tokens",
    ("length", "cross"): "cross_pairs",
    ("length", "audio"): "audio_frames",
    ("count", "micro_batches"): "forward_passes",
    ("length", "projected"): "projected_tokens",
}


@dataclass(frozen=True)
class Histogram:
    """Many lengths, each that occurs once.

    Attributes:
        lengths: Python integers, or a numpy int64 array.
        times: how often each of them stands, in the same form.
        longest: of the lengths.
        number: of all of them, repeated ones included.
    """

    lengths: Any
    times: Any
    longest: int
    number: int

    def sum(self, formula: Callable[..., Length], sizes: tuple[int, ...]) -> int:
        """The sum of ``formula(length, *sizes)`` over all lengths, exactly."""
        # Parts of a formula have degree two in length and sizes together, or its own where that is more; factors add up to 4.
        most = max((self.longest + sum(sizes) + 1) ** 2, abs(formula(self.longest, *sizes)))
        fits = 4 * most * self.number < 2**63
        if isinstance(self.lengths, tuple):
            pairs = zip(self.lengths, self.times, strict=True)
        elif fits:
            return int(self.times.dot(formula(self.lengths, *sizes)))
        else:
            pairs = zip(self.lengths.tolist(), self.times.tolist(), strict=True)
        return sum(times * formula(length, *sizes) for length, times in pairs)


@dataclass(frozen=True)
class Statistic:
    """A sum over sequences or other items of an integer function of one length.

    Attributes:
        kind: which function, a key of this module's table.
        over: one of ``Over``, by name or as a member; ConfigError names the known ones.
        sizes: the constants of the function: window, chunk, ratio, top-k.
    """

    kind: str
    over: Over = Over.SEQUENCES
    sizes: tuple[int, ...] = ()

    def __init__(self, kind: str, over: Over | str = Over.SEQUENCES, sizes: tuple[int, ...] = ()):
        if kind not in _FORMULAS:
            raise KeyError(f"unknown statistic {kind!r}; known are {', '.join(_FORMULAS)}")
        self.__dict__.update(kind=kind, over=Over(over), sizes=sizes)

    @property
    def name(self) -> str:
        """``tokens``, ``window_pairs[1024]``, ``quotient_of_images[4]``: unique within a plan."""
        known = _KNOWN_NAMES.get((self.kind, self.over))
        if known:
            return known
        stem = self.kind if self.over is Over.SEQUENCES else f"{self.kind}_of_{self.over}"
        return f"{stem}[{','.join(map(str, self.sizes))}]" if self.sizes else stem

    def of(self, length: Length) -> Length:
        """The contribution of one length (an int), or of each length of an int64 array."""
        return _FORMULAS[self.kind](length, *self.sizes)

    def sum(self, lengths: Iterable[int] | Histogram) -> int:
        """The statistic of a batch."""
        formula, sizes = _FORMULAS[self.kind], self.sizes
        if isinstance(lengths, Histogram):
            return lengths.sum(formula, sizes)
        return sum(formula(length, *sizes) for length in lengths)


SEQUENCES = Statistic("count")
TOKENS = Statistic("length")
PATCHES = Statistic("length", "images")
PROJECTED = Statistic("length", "projected")
FORWARD_PASSES = Statistic("count", "micro_batches")
