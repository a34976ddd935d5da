"""Sample number -> documents: one class for each kind of ``data.batching``.

The order depends only on the seed and the sample number.  In epoch e the documents come in the order of the permutation drawn
from (seed, e); samples are numbered through all epochs.  So every parallel layout sees the same samples in the same global
batches, and a run that resumes at sample g continues exactly there.

A sample is a list of segments; a segment is a pair (inputs, labels) of equal length, labels being the inputs one token
later, or a triple with the mask of the learned labels.  Attention never crosses segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bridge.data.corpus import Corpus
from bridge.data.tokenizer import Tokens

Segment = tuple[Tokens, Tokens] | tuple[Tokens, Tokens, NDArray[np.bool_]]


class EpochOrder:
    """Numbers in an endless sequence of epochs, each in the order of the permutation drawn from (seed, epoch)."""

    def __init__(self, numbers: NDArray[np.int64], seed: int) -> None:
        self._numbers, self._seed = numbers, seed
        self._known: tuple[int, NDArray[np.int64]] = (-1, numbers)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The numbers in the order of an epoch."""
        return np.random.default_rng([self._seed, epoch]).permutation(self._numbers)

    def __getitem__(self, index: int) -> int:
        """The number at a position of the sequence."""
        epoch, place = divmod(index, len(self._numbers))
        if self._known[0] != epoch:
            self._known = epoch, self.epoch(epoch)
        return int(self._known[1][place])


class Samples(ABC):
    """An endless sequence of samples, indexed by the global sample number."""

    def __init__(self, corpus: Corpus, documents: NDArray[np.int64], seq_length: int, seed: int) -> None:
        """``documents``: the numbers of the documents to use; ``seq_length``: the most tokens of a sample."""
        self.corpus = corpus
        self.documents = documents
        self.seq_length = seq_length
        self.order = EpochOrder(documents, seed)

    @abstractmethod
    def __getitem__(self, index: int) -> list[Segment]:
        """Return the segments of sample ``index``."""

    @abstractmethod
    def samples_per_epoch(self) -> int:
        """Number of samples in the first epoch, before any document repeats."""

    def segment(self, document: int) -> Segment:
        """One document as inputs and labels, cut at ``seq_length``; the label of its last token ends the document."""
        tokens = self.corpus.document(document)
        inputs = tokens[: self.seq_length]
        following = tokens[1 : self.seq_length + 1]
        if len(following) < len(inputs):
            following = np.append(following, np.asarray([self.corpus.eod], dtype=np.int32))
        return inputs, following


class PaddedSamples(Samples):
    """One document per sample."""

    def samples_per_epoch(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> list[Segment]:
        return [self.segment(self.order[index])]


class PackedSamples(Samples):
    """Documents in order, as many as fit into ``seq_length`` tokens; the next one opens the next sample."""

    def __init__(self, corpus: Corpus, documents: NDArray[np.int64], seq_length: int, seed: int) -> None:
        super().__init__(corpus, documents, seq_length, seed)
        self._lengths = np.minimum(corpus.lengths, seq_length)
        self._starts = [0]  # number of the first sample of each epoch, and of the epoch after the last known one
        self._packs: dict[int, list[list[int]]] = {}

    def samples_per_epoch(self) -> int:
        return len(self._pack(0))

    def __getitem__(self, index: int) -> list[Segment]:
        while self._starts[-1] <= index:
            self._starts.append(self._starts[-1] + len(self._pack(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, index) - 1
        return [self.segment(document) for document in self._pack(epoch)[index - self._starts[epoch]]]

    def _pack(self, epoch: int) -> list[list[int]]:
        if epoch not in self._packs:
            order = self.order.epoch(epoch)
            self._packs = {epoch: pack(order.tolist(), self._lengths[order].tolist(), self.seq_length)}
        return self._packs[epoch]


def pack(items: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Cut a sequence of items into consecutive groups of at most ``capacity`` tokens (next fit)."""
    groups: list[list[int]] = []
    free = -1
    for item, length in zip(items, lengths, strict=True):
        if length > free:
            groups.append([])
            free = capacity
        groups[-1].append(item)
        free -= length
    return groups


class FixedSamples(Samples):
    """Slices of exactly ``seq_length`` tokens of all documents concatenated, each with its end-of-document token.

    A slice is one segment: attention crosses the documents in it, as in megatron-core's GPTDataset.
    """

    def __init__(self, corpus: Corpus, documents: NDArray[np.int64], seq_length: int, seed: int) -> None:
        super().__init__(corpus, documents, seq_length, seed)
        self._stream: dict[int, Tokens] = {}

    def samples_per_epoch(self) -> int:
        tokens = int(self.corpus.lengths[self.documents].sum()) + len(self.documents)
        return (tokens - 1) // self.seq_length

    def __getitem__(self, index: int) -> list[Segment]:
        epoch, place = divmod(index, self.samples_per_epoch())
        if epoch not in self._stream:
            eod = np.asarray([self.corpus.eod], dtype=self.corpus.tokens.dtype)
            pieces = (part for d in self.order.epoch(epoch).tolist() for part in (self.corpus.document(d), eod))
            self._stream = {epoch: np.concatenate(list(pieces))}
        tokens = self._stream[epoch][place * self.seq_length :][: self.seq_length + 1]
        return [(tokens[:-1], tokens[1:])]


KINDS: dict[str, type[Samples]] = {"padded": PaddedSamples, "packed": PackedSamples, "fixed": FixedSamples}
"""``data.batching`` -> how samples are made."""
