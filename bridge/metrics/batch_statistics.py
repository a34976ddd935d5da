"""Adds up the statistics of one rank's micro-batches in an integer vector (:class:`~bridge.metrics.vector.VectorLayout`).

Bounds: the host adds Python integers, which do not overflow.  Inside one micro-batch numpy adds int64; a statistic that is
at most twice the square of the micro-batch's tokens cannot overflow below 2^30 tokens (a cube: 2^20), and above that the
same formulas run on Python integers.  On a device, sums are kept in two limbs (see :mod:`bridge.metrics.reduction`), and a
micro-batch above the bound counts as one that cannot be read.

Cost: on the training thread a micro-batch costs one append where a snapshot of it can be kept (see
:mod:`bridge.metrics.snapshots`).  Snapshots are read and summed once per interval, a shape of fixed length once per run.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bridge.flops.statistics import Statistic
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.reduction import LIMB_BITS, LIMB_MASK
from bridge.metrics.snapshots import Packed, Snapshot, joined_lengths, restored
from bridge.metrics.vector import VectorLayout

#: The limit of tokens, or patches, that are summed in int64 is at most 2 to this power.
_MOST_BITS = 30

#: Snapshots that are kept before they are summed, offsets of a snapshot that is summed at once, and shapes that are remembered.
_MOST_KEPT, _MUCH, _MOST_PRICES = 1024, 4096, 4096

#: What statistics can be summed over: lengths read from batches, and what routers count. Statistics over anything else stay zero.
READ = ("sequences", "images", "micro_batches", "longest", "routed", "projected")

#: Statistics of lengths from here on are computed, not looked up: a row of the table takes at most 8 MiB.
_TABLE_LIMIT = 2**20


class StatisticSums:
    """The sums of several statistics over an array of lengths.

    A table of values [statistics, lengths] turns all formulas into one gather and one sum; where lengths repeat, into a
    histogram and one product. 2 us for a few lengths, 3 us for 1,024 short ones.
    """

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        self.statistics = tuple(statistics)
        self._table = np.zeros((len(self.statistics), 1), np.int64)
        self.limit = next(
            1 << bits for bits in range(_MOST_BITS, -1, -1) if all(4 * one.of(1 << bits) <= 2**63 for one in self.statistics)
        )
        """Tokens, or patches, of a micro-batch up to which no sum can overflow int64."""

    def of_array(self, lengths: np.ndarray) -> list[int]:
        """One sum per statistic; correct as long as none overflows int64."""
        longest = lengths.item(lengths.argmax()) if lengths.size else 0
        if longest >= _TABLE_LIMIT:
            return [int(self._masked(statistic, lengths).sum()) for statistic in self.statistics]
        if longest >= self._table.shape[1]:
            every = np.arange(1 << longest.bit_length(), dtype=np.int64)
            self._table = np.stack([self._masked(statistic, every) for statistic in self.statistics])
        table = self._table
        if lengths.size > table.shape[1]:
            return table.dot(np.bincount(lengths, minlength=table.shape[1])).tolist()
        return np.add.reduce(table.take(lengths, axis=1), axis=1).tolist()

    def of_frames(self, patches: np.ndarray, frames: np.ndarray) -> list[int]:
        """The sums over images of ``frames`` times the statistic of one frame."""
        return [int(frames.dot(self._masked(statistic, patches))) for statistic in self.statistics]

    def of_tensor(self, lengths: Any, times: Any = 1) -> list[Any]:
        """The sums over a tensor on a device: int64 tensors [], computed there."""
        return [(self._masked(statistic, lengths) * times).sum() for statistic in self.statistics]

    def exact(self, lengths: Sequence[int], times: Sequence[int] | None = None) -> list[int]:
        """The sums in Python integers, for lengths of any size."""
        weights = times if times is not None else [1] * len(lengths)
        weighted = [(length, weight) for length, weight in zip(lengths, weights, strict=True) if length]
        return [sum(weight * statistic.of(length) for length, weight in weighted) for statistic in self.statistics]

    @staticmethod
    def _masked(statistic: Statistic, lengths: Any) -> Any:
        """The values of a statistic, with zeros for empty segments, which are no sequences."""
        return statistic.of(lengths) * (lengths > 0)


class BatchStatistics:
    """The running sums of one rank.

    Args:
        layout: positions of the statistics and counters.
    """

    def __init__(self, layout: VectorLayout) -> None:
        self.layout = layout
        self._sequence_slots, self._sequence_sums = _select(layout.statistics, "sequences")
        self._image_slots, self._image_sums = _select(layout.statistics, "images")
        self._pass_slots, _ = _select(layout.statistics, "micro_batches")
        self._longest_slots, self._longest_sums = _select(layout.statistics, "longest")
        self._projected_slots, _ = _select(layout.statistics, "projected")
        self.needs_images = bool(self._image_slots)
        self._only_images = all(statistic.kind == "count" for statistic in self._image_sums.statistics)
        self._tokens = layout.index["tokens"]
        self._tokens_sum = self._sequence_slots.index(self._tokens)
        self._positions, self._micro_batches = layout.index["positions"], layout.index["micro_batches"]
        self._kept: list[Any] = []
        """Micro-batches that are not summed yet, as snapshots or as lengths."""
        self._kept_before = self._tokens_before = 0
        """How many micro-batches were kept, and how many tokens summed, when the step began."""
        self._device_tokens_before: Any = None
        self._prices: dict[Snapshot, list[tuple[int, int]]] = {}
        """Positions and amounts that a micro-batch of a shape adds."""
        self.unread: NoLengths | None = None
        """Why the last unreadable micro-batch could not be read."""
        self.values: list[int] = layout.zeros()
        self.device_values: torch.Tensor | None = None
        """Limbs [2, len(layout.names)] on the device; None before the first batch whose lengths are there."""

    # ---- adding ---------------------------------------------------------------------------------------------------

    def keep(self, kept: Snapshot | BatchLengths) -> None:
        """Count a micro-batch later."""
        self._kept.append(kept)
        if len(self._kept) >= _MOST_KEPT or (type(kept) is Packed and len(kept.offsets) >= _MUCH):
            self.reduce()

    def reduce(self) -> None:
        """Sum the micro-batches that were kept."""
        kept, self._kept = self._kept, []
        if before := self._kept_before:
            self._sum(kept[:before])
            self._kept_before, self._tokens_before = 0, self.values[self._tokens]
        self._sum(kept[before:])

    def _sum(self, kept: Sequence[Snapshot | BatchLengths]) -> None:
        shapes: list[Any] = []
        joined: list[Packed] = []
        offsets: list[int] = []
        ends: list[int] = []
        for one in kept:
            if type(one) is Packed and not self._longest_slots and (plain := one.plain()) is not None:
                offsets += plain
                joined.append(one)
                ends.append(len(offsets))
            elif type(one) is Packed or type(one) is BatchLengths:
                self._attempt(functools.partial(self._add_one, one), 1)
            else:
                shapes.append(one)
        for shape, times in Counter(shapes).items():
            self._attempt(functools.partial(self._add_shape, shape, times), times)
        if joined:
            self._add_joined(joined, joined_lengths(offsets, ends))

    def _add_joined(self, rows: Sequence[Packed], lengths: np.ndarray | None) -> None:
        """Add packed micro-batches together; if there are no lengths, one by one, to find the ones that are wrong."""
        if lengths is not None:
            self.add(BatchLengths(lengths, sum(row.shape[-1] for row in rows)), len(rows))
            return
        for row in rows:
            self._attempt(functools.partial(self._add_one, row), 1)

    def _attempt(self, add: Callable[[], None], micro_batches: int) -> None:
        try:
            add()
        except NoLengths as error:
            self.unread = error
            self.count("unread_micro_batches", micro_batches)

    def _add_one(self, kept: Snapshot | BatchLengths) -> None:
        lengths = kept if isinstance(kept, BatchLengths) else read_lengths(restored(kept), images=self.needs_images)
        if lengths is not None:
            self.add(lengths)

    def _add_shape(self, shape: tuple[int, ...], times: int) -> None:
        """Add ``times`` micro-batches of one shape; its amounts are computed once."""
        if (price := self._prices.get(shape)) is None:
            lengths = read_lengths(restored(shape))
            assert lengths is not None
            if len(self._prices) >= _MOST_PRICES:
                self._prices.clear()
            amounts = self._amounts(lengths)
            price = self._prices[shape] = [pair for slots, sums in amounts for pair in zip(slots, sums, strict=True)]
        for position, amount in price:
            self.values[position] += amount * times

    def add(self, lengths: BatchLengths, micro_batches: int = 1) -> None:
        """Count a micro-batch now, or several together.

        Raises:
            NoLengths: the plan needs patches, and the micro-batch has pixels of unknown patches.
        """
        for slots, sums in self._amounts(lengths, micro_batches):  # all or nothing: whatever can raise has run before
            if isinstance(sums[0], int):
                for position, amount in zip(slots, sums, strict=True):
                    self.values[position] += amount
            else:
                self._add_on_device(slots, sums)

    def _amounts(self, lengths: BatchLengths, micro_batches: int = 1) -> list[tuple[Sequence[int], list[Any]]]:
        """The positions and the amounts that a micro-batch adds there."""
        if lengths.unmeasured_images and self.needs_images:
            lengths = self._counted_images(lengths)
        of_sequences = self._sums_of_sequences(lengths.sequences, lengths.positions)
        amounts: list[tuple[Sequence[int], list[Any]]] = [
            (self._sequence_slots, of_sequences),
            ([self._positions], [lengths.positions]),
            ([self._micro_batches, *self._pass_slots], [micro_batches] * (1 + len(self._pass_slots))),
        ]
        if lengths.image_patches is not None and self.needs_images:
            amounts.append((self._image_slots, self._sums_of_images(lengths.image_patches, lengths.image_frames)))
        if self._longest_slots:
            amounts.append((self._longest_slots, self._sums_of_longest(lengths.sequences)))
        if self._projected_slots:
            some = lengths.projected
            amounts.append((self._projected_slots, [of_sequences[self._tokens_sum] if some is None else some]))
        if lengths.unread is not None:  # only the device knows whether the lengths are valid
            read = lengths.unread.logical_not().long()
            amounts = [(slots, [amount * read for amount in sums]) for slots, sums in amounts]
            amounts.append(([self.layout.index["unread_micro_batches"]], [1 - read]))
        return amounts

    def _sums_of_sequences(self, sequences: Any, positions: Any) -> list[Any]:
        if not isinstance(sequences, np.ndarray):
            if isinstance(positions, int) and positions > self._sequence_sums.limit:
                raise NoLengths(f"{positions:,} tokens in one micro-batch are too many to sum on a device")
            return self._sequence_sums.of_tensor(sequences)
        sums = self._sequence_sums.of_array(sequences)
        if 0 <= sums[self._tokens_sum] < self._sequence_sums.limit:
            return sums
        return self._sequence_sums.exact(sequences.tolist())

    def _counted_images(self, lengths: BatchLengths) -> BatchLengths:
        """Lengths with the number of images alone, for a plan that needs no patches: its model takes images of one size."""
        if not self._only_images or lengths.number_of_images is None:
            raise NoLengths("pixels without image_grid_thw: their patches are unknown")
        ones = np.ones(lengths.number_of_images, np.int64)
        return lengths._replace(image_patches=ones, image_frames=ones)

    def _sums_of_longest(self, sequences: Any) -> list[Any]:
        if not isinstance(sequences, np.ndarray):
            return self._longest_sums.of_tensor(sequences.max()[None])
        return self._longest_sums.exact([int(sequences.max(initial=0))])

    def _sums_of_images(self, patches: Any, frames: Any) -> list[Any]:
        if not isinstance(patches, np.ndarray):
            patches = patches.long()
            return self._image_sums.of_tensor(patches, frames.long().to(patches.device))
        patches, frames = patches.astype(np.int64), frames.astype(np.int64)
        if int(patches.dot(frames)) < self._image_sums.limit:
            return self._image_sums.of_frames(patches, frames)
        return self._image_sums.exact(patches.tolist(), frames.tolist())

    def _add_on_device(self, positions: Sequence[int], amounts: Sequence[Any]) -> None:
        """Add int64 tensors [] to the limbs on the device: two kernels each, and nothing is read back."""
        limbs = self._on(amounts[0].device)
        for position, amount in zip(positions, amounts, strict=True):
            limbs[0, position] += amount & LIMB_MASK
            limbs[1, position] += amount >> LIMB_BITS

    def add_tensor(self, positions: Any, amounts: Any) -> None:
        """Add amounts, an int64 tensor [n] on a device, at ``positions`` [n]; nothing is read back."""
        limbs = self._on(amounts.device)
        limbs[0].index_add_(0, positions, amounts & LIMB_MASK)
        limbs[1].index_add_(0, positions, amounts >> LIMB_BITS)

    def _on(self, device: torch.device) -> torch.Tensor:
        """The limbs on the device, which begin as zeros."""
        if self.device_values is None:
            self.device_values = torch.zeros(2, len(self.values), dtype=torch.int64, device=device)
        return self.device_values

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the ``COUNTERS``, or to another entry of the vector."""
        self.values[self.layout.index[name]] += amount

    # ---- steps ----------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """A step begins: what is counted from here on belongs to it."""
        self._kept_before, self._tokens_before = len(self._kept), self.values[self._tokens]
        if self.device_values is not None:
            self._device_tokens_before = self.device_values[:, self._tokens].clone()

    def mark_unlearned(self) -> None:
        """Report the tokens of this step as computed but not learned from."""
        self.reduce()
        self.count("unlearned_tokens", self.values[self._tokens] - self._tokens_before)
        if self.device_values is not None:
            before = self._device_tokens_before
            added = self.device_values[:, self._tokens] - (0 if before is None else before)
            self.device_values[:, self.layout.index["unlearned_tokens"]] += added

    def drain(self) -> tuple[list[int], Any | None]:
        """Return the sums since the last drain, of host and device, and start again from zero."""
        self.reduce()
        drained = self.values, self.device_values
        self.values, self.device_values, self._device_tokens_before = self.layout.zeros(), None, None
        self._tokens_before = 0
        return drained


def _select(statistics: Sequence[Statistic], over: str) -> tuple[list[int], StatisticSums]:
    """The positions of the statistics over one kind of item, and their sums."""
    slots = [position for position, statistic in enumerate(statistics) if statistic.over == over]
    return slots, StatisticSums([statistics[position] for position in slots])
