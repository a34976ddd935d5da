"""The result of every reader of packed files: consecutive rows as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a packed file.

    A sequence of n tokens counts as n - 1: its last token is only ever a label, never an input.

    Attributes:
        lengths: input tokens of every sequence, row by row.
        sequences: number of sequences in each row.
        share: the fraction of the file up to the end of these rows, 0 to 1.
    """

    lengths: Integers
    sequences: Integers
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.sequences)

    @classmethod
    def from_tokens(cls, tokens: Any, sequences: Any, share: float, first_row: int) -> Rows:
        """From the number of tokens of every sequence, including its last one.

        Args:
            first_row: the number of the first row in its file, for messages.

        Raises:
            ValueError: a negative number of tokens.
        """
        tokens, sequences = np.asarray(tokens, np.int64), np.asarray(sequences, np.int64)
        if len(tokens) and tokens.min() < 0:
            row = np.searchsorted(np.cumsum(sequences), np.argmin(tokens), side="right")
            raise ValueError(f"row {first_row + row} has a sequence of {tokens.min()} tokens")
        return cls(np.maximum(tokens - 1, 0), sequences, share)

    @classmethod
    def from_starts(cls, starts: Any, sequences: Any, totals: Any, share: float, first_row: int) -> Rows:
        """From the start of each sequence in its row (``seq_start_id``) and the number of tokens of each row (``input_ids``).

        Raises:
            ValueError: a row whose sequences do not fill it from its first token to its last.
        """
        starts, sequences, totals = (np.asarray(part, np.int64) for part in (starts, sequences, totals))
        filled = sequences > 0
        last = np.cumsum(sequences)[filled] - 1
        ends = np.append(starts[1:], 0)
        ends[last] = totals[filled]
        wrong = ~filled & (totals > 0)
        wrong[filled] |= starts[last + 1 - sequences[filled]] != 0
        tokens = ends - starts
        wrong[np.repeat(np.arange(len(sequences)), sequences)[tokens < 0]] = True
        if wrong.any():
            row = int(np.argmax(wrong))
            begin = int(sequences[:row].sum())
            found = starts[begin : begin + int(sequences[row])][:8].tolist()
            raise ValueError(
                f"row {first_row + row} has {totals[row]} input_ids, and its seq_start_id {found} must rise from 0 up to their "
                "number"
            )
        return cls(np.maximum(tokens - 1, 0), sequences, share)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Several pieces joined to one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.lengths for part in parts]), np.concatenate([part.sequences for part in parts]), parts[-1].share
        )

    def split(self, rows: int) -> tuple[Rows, Rows]:
        """The first ``rows`` rows, and the others."""
        at = int(self.sequences[:rows].sum())
        return (
            Rows(self.lengths[:at], self.sequences[:rows], self.share),
            Rows(self.lengths[at:], self.sequences[rows:], self.share),
        )


def integers(values: Any, what: str) -> Integers:
    """The values as an int64 array.

    Raises:
        ValueError: they are not integers.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{what} must hold integers")
    return array.astype(np.int64)
