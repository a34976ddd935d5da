"""Sequence statistics of packed fine-tuning files, which need not be trusted.

A table has the number of sequences of each length in a file.  Any statistic of any plan follows from it exactly, so one small
table serves every model, convention and window; so do the averages that other frameworks use.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

from bridge.data.packed import sidecar
from bridge.data.packed.files import Shard, identify_all, read_rows, shards_of
from bridge.data.packed.progress import FileProgress
from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError, whole
from bridge.flops.statistics import SEQUENCES, TOKENS, Statistic

logger = logging.getLogger(__name__)

#: Seconds to wait for another process that computes the same table, before this one computes it too.
PATIENCE_S = 600.0
#: The number of plans whose price a table remembers.
PRICES = 32
#: Seconds between two checks for the result of the other process.
_POLL_S = 0.05

_SQUARES = Statistic("square")


class SequenceTable(tuple[Fraction, Fraction, Fraction, Fraction]):
    """Four averages of a packed file, and the distribution of lengths behind them.

    As a tuple: sequences per row, tokens per row, mean squared length, squared lengths per row.

    Attributes:
        rows: the number of counted rows.
        lengths: length in tokens (without the last token, which is never an input) -> number of sequences.
    """

    rows: int
    lengths: Mapping[int, int]
    _sums: dict[Statistic, int]
    _prices: dict[Plan, Fraction]

    def __new__(cls, rows: int, lengths: Mapping[int, int]) -> SequenceTable:
        """``rows``: the number of rows; ``lengths``: the number of sequences of each length in them. Neither may be empty."""
        sequences, tokens, squares = (
            sum(count * statistic.of(length) for length, count in lengths.items()) for statistic in (SEQUENCES, TOKENS, _SQUARES)
        )
        table = super().__new__(
            cls, (Fraction(sequences, rows), Fraction(tokens, rows), Fraction(squares, sequences), Fraction(squares, rows))
        )
        table.rows, table.lengths = rows, lengths
        table._prices = {}
        table._sums = {SEQUENCES: sequences, TOKENS: tokens, _SQUARES: squares}
        return table

    def sum(self, statistic: Statistic) -> int:
        """The sum of a statistic over all rows; computed once."""
        if statistic not in self._sums:
            self._sums[statistic] = sum(count * statistic.of(length) for length, count in self.lengths.items())
        return self._sums[statistic]

    def price(self, plan: Plan) -> Fraction:
        """Mean training FLOPs per row, without images; computed once per plan."""
        if plan not in self._prices:
            while len(self._prices) >= PRICES:
                self._prices.pop(next(iter(self._prices)))
            vector = [self.sum(statistic) if statistic.over == "sequences" else 0 for statistic in plan.statistics]
            self._prices[plan] = Fraction(plan.evaluate(vector)) / self.rows
        return self._prices[plan]


def calculate_avg_seqlen(
    dataset_file: str | os.PathLike[str], gbs: int, max_seq_len: int | None, drop_remainder: bool
) -> SequenceTable:
    """Statistics of a packed file, with the name, the arguments and the four averages of Megatron-Bridge's packing utilities.

    They are read from the file's sidecar if that matches its current state; otherwise they are computed and written there.

    Args:
        dataset_file: ``.npy``, ``.parquet``, ``.jsonl``, ``.bin`` or ``.idx``; a file, a folder of shards or a glob.
        gbs: rows of a global batch.
        max_seq_len: tokens of the longest sequence; a part of the sidecar's key only, no sequence is shortened.
        drop_remainder: whether to leave out the last rows, which do not fill a global batch.

    Returns:
        A tuple of sequences per row, tokens per row, mean squared length and squared lengths per row, exact fractions.

    Raises:
        ConfigError: the file cannot be read, or holds no row to count.
    """
    whole("train.global_batch_size", gbs)
    dataset_file = os.fspath(dataset_file)
    shards = identify_all(shards_of(dataset_file))
    key = {"global_batch_size": gbs, "seq_length": max_seq_len, "drop_remainder": drop_remainder}
    places = sidecar.candidates(dataset_file, shards)
    known = _look_up(places, shards, key)
    if known is not None:
        return known
    with FileProgress(dataset_file, sum(shard.size or 0 for shard in shards)) as progress:
        for place in places:
            try:
                return _compute_once(place, dataset_file, shards, key, progress)
            except OSError as error:
                logger.debug("no sequence statistics in %s: %s", place.parent, error)
        return _tabulate(dataset_file, shards, gbs, drop_remainder, progress)


def _look_up(places: Sequence[Any], shards: Sequence[Shard], key: Mapping[str, Any]) -> SequenceTable | None:
    for place in places:
        for table in sidecar.load(place, shards):
            if all(table.get(name) == value for name, value in key.items()):
                with suppress(KeyError, ValueError, TypeError, ZeroDivisionError):
                    return SequenceTable(table["rows"], dict(zip(table["lengths"], table["counts"], strict=True)))
    return None


def _compute_once(
    place: Any, dataset_file: str, shards: tuple[Shard, ...], key: Mapping[str, Any], progress: FileProgress
) -> SequenceTable:
    """The table, computed by the first process and read by the others.

    Raises:
        OSError: nothing can be written at this place.
    """
    start = time.monotonic()
    while True:
        with sidecar.try_lock(place) as mine:
            # Another process may have finished since the last check.
            known = _look_up([place], shards, key)
            if known is not None:
                return known
            if mine or time.monotonic() - start > PATIENCE_S:
                table = _tabulate(dataset_file, shards, key["global_batch_size"], key["drop_remainder"], progress)
                if identify_all([shard.path for shard in shards]) == shards:
                    with suppress(OSError):  # a full disk costs time, not the run
                        sidecar.store(place, shards, [*sidecar.load(place, shards), {**key, **_as_json(table)}])
                return table
        progress.update(0, "Waiting for another process to read")
        time.sleep(_POLL_S)


def _as_json(table: SequenceTable) -> dict[str, Any]:
    lengths = sorted(table.lengths)
    return {"rows": table.rows, "lengths": lengths, "counts": [table.lengths[length] for length in lengths]}


def _tabulate(
    dataset_file: str, shards: Sequence[Shard], global_batch_size: int, drop_remainder: bool, progress: FileProgress
) -> SequenceTable:
    """Read the shards, one after the other."""
    import numpy as np

    from bridge.data.packed.rows import Rows

    lengths: Counter[int] = Counter()
    multiple = global_batch_size if drop_remainder else 1
    pending: list[Rows] = []
    waiting = counted = 0
    read: float = 0
    for shard in shards:
        for piece in read_rows(shard.path):
            pending.append(piece)
            waiting += len(piece)
            if waiting >= multiple:
                ready, rest = Rows.joined(pending).split(waiting // multiple * multiple)
                for length, count in zip(*map(np.ndarray.tolist, np.unique(ready.lengths, return_counts=True)), strict=True):
                    lengths[length] += count
                counted += len(ready)
                pending, waiting = [rest], len(rest)
            progress.update(read + piece.share * (shard.size or 0))
        read += shard.size or 0
    if not counted and waiting:
        raise ConfigError(
            f"packed file {dataset_file}: {waiting} rows do not fill a global batch of {global_batch_size}; "
            "lower train.global_batch_size or add data"
        )
    if not lengths:
        raise ConfigError(f"packed file {dataset_file} holds no sequences in {counted} rows; add data")
    return SequenceTable(counted, lengths)
