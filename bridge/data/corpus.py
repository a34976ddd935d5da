"""All documents of a run as token numbers, and their split into training and evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.data.text import read_documents
from bridge.data.tokenizer import Tokenizer, Tokens
from bridge.flops.shapes import ConfigError


@dataclass(frozen=True)
class Corpus:
    """Documents concatenated in one array; ``offsets[i]:offsets[i + 1]`` is document i."""

    tokens: Tokens
    offsets: NDArray[np.int64]
    eod: int

    @classmethod
    def of(cls, documents: Sequence[Tokens], eod: int) -> Corpus:
        """Concatenate tokenized documents."""
        offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(document) for document in documents], out=offsets[1:])
        tokens: Tokens = np.empty(int(offsets[-1]), dtype=np.uint16 if eod < 2**16 else np.int32)
        for document, start, end in zip(documents, offsets[:-1], offsets[1:], strict=True):
            tokens[start:end] = document
        return cls(tokens, offsets, eod)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, without the end-of-document token."""
        return np.diff(self.offsets)

    def document(self, index: int) -> Tokens:
        """The tokens of one document (a view)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def fingerprint(self) -> str:
        """A text that is equal if and only if the documents and their order are; ranks compare it, and so does a resume."""
        checksum = zlib.crc32(self.offsets.tobytes(), zlib.crc32(np.ascontiguousarray(self.tokens).tobytes()))
        return f"{len(self)} documents, {int(self.offsets[-1])} tokens, crc32 {checksum:08x}"


def load_corpus(
    path: Any,
    tokenizer: Tokenizer,
    *,
    separator: str | None = None,
    max_documents: int | None = None,
    min_document_length: int = 2,
) -> Corpus:
    """Read and tokenize the documents of ``data.path``, leaving out those that are too short.

    Raises:
        ConfigError: The path does not exist, a file cannot be read, or no document is long enough.
    """
    documents = read_documents(path, separator, max_documents)
    kept = [tokens for tokens in tokenizer.encode(documents) if len(tokens) >= max(min_document_length, 1)]
    if not kept:
        raise ConfigError(
            f"data.path={path!r} holds {len(documents)} documents, none of them with data.min_document_length="
            f"{min_document_length} tokens or more. Give different text or lower data.min_document_length."
        )
    return Corpus.of(kept, tokenizer.eod)


def split(count: int, eval_fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the documents for training and for evaluation: two arrays of document numbers, each in file order.

    The choice depends only on the seed.  With a fraction above 0 and at least two documents, both get at least one.
    """
    held = min(max(round(count * eval_fraction), 1 if eval_fraction > 0 else 0), count - 1)
    order = np.random.default_rng([seed, 0xE7A1]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
