"""Turns text into token numbers: its bytes, or the tokens of a ``tokenizers`` JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bridge.flops.shapes import ConfigError

if TYPE_CHECKING:
    from bridge.config.schema import Config

Tokens = NDArray[np.integer]

END_OF_DOCUMENT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|im_end|>", "[SEP]", "[EOS]")
"""Names of the end-of-document token in published tokenizers, most specific first."""


class Tokenizer(Protocol):
    """What the data pipeline needs from a tokenizer."""

    vocab_size: int
    """Number of distinct tokens, including the end-of-document token."""
    eod: int
    """The token that ends a document."""

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """Return the tokens of each document, without the end-of-document token."""
        ...


class ByteTokenizer:
    """The 256 byte values, and token 256 as the end of a document."""

    vocab_size = 257
    eod = 256

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """Return the bytes themselves."""
        return [np.frombuffer(document, dtype=np.uint8) for document in documents]


class JsonTokenizer:
    """A tokenizer file of the ``tokenizers`` library (``tokenizer.json`` of most published models)."""

    def __init__(self, path: str | Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                f"data.tokenizer={str(path)!r} needs the package `tokenizers`: pip install tokenizers, or use "
                "data.tokenizer=byte."
            ) from error
        if not Path(path).is_file():
            raise ConfigError(
                f"data.tokenizer={str(path)!r} is neither `byte` nor a file. Give the path of a tokenizers JSON file."
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every kind of bad file
            raise ConfigError(
                f"data.tokenizer={str(path)!r} is not a tokenizers JSON file ({error}). Give another file or `byte`."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        named = (self._tokenizer.token_to_id(name) for name in END_OF_DOCUMENT_NAMES)
        eod = next((number for number in named if number is not None), None)
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.eod: int = size if eod is None else eod  # without such a token, one is added
        self.vocab_size: int = max(size, self.eod + 1)

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """Decode as UTF-8 (invalid bytes become the replacement character) and tokenize."""
        texts = [document.decode("utf-8", errors="replace") for document in documents]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encoded]


def build_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that ``data.tokenizer`` names: ``byte`` or the path of a JSON file."""
    return ByteTokenizer() if name == "byte" else JsonTokenizer(name)


def tokenizer_for(cfg: Config) -> Tokenizer:
    """The tokenizer of a configuration.

    Raises:
        ConfigError: It cannot be loaded, or the model's vocabulary is too small for it.
    """
    tokenizer = build_tokenizer(cfg.data.tokenizer)
    if cfg.model.vocab_size is None or cfg.model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size={cfg.model.vocab_size} is smaller than the {tokenizer.vocab_size} tokens of "
            f"data.tokenizer={cfg.data.tokenizer!r}. Set model.vocab_size to {tokenizer.vocab_size} or more."
        )
    return tokenizer
