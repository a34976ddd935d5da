"""The vector of a rank equals what the plan measures length by length, on the host and on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.flops import statistics as statistics_of_lengths
from bridge.flops.statistics import Statistic
from bridge.metrics import batch_statistics
from bridge.metrics.batch_lengths import BatchLengths, NoLengths, read_lengths
from bridge.metrics.batch_statistics import BatchStatistics
from bridge.metrics.reduction import from_limbs
from bridge.metrics.snapshots import Snapshots
from bridge.metrics.vector import VectorLayout

STATISTICS = (
    Statistic("square"),
    Statistic("causal_pairs"),
    Statistic("window_pairs", sizes=(7,)),
    Statistic("doubled_window_area", sizes=(7,)),
    Statistic("chunk_pairs", sizes=(5,)),
    Statistic("chunk_squares", sizes=(5,)),
    Statistic("compressed_pairs", sizes=(4,)),
    Statistic("compressed_topk_pairs", sizes=(4, 3)),
    Statistic("doubled_compressed_topk_area", sizes=(4, 3)),
    Statistic("quotient", sizes=(4,)),
    Statistic("length", "images"),
    Statistic("square", "images"),
    Statistic("quotient", "images", (4,)),
)
"""Every kind of statistic a plan can ask for."""


def expected(sequences, images=()):
    """What length by length arithmetic on Python integers gives."""
    lengths = {"sequences": [s for s in sequences if s], "images": [p for p in images if p]}
    return [statistic.sum(lengths[statistic.over]) for statistic in STATISTICS]


def batch(sequences, images=()):
    patches = np.array([p for p, _ in images], np.int64)
    frames = np.array([t for _, t in images], np.int64)
    return BatchLengths(np.array(sequences, np.int64), sum(sequences) + 3, patches, frames)


def counted(statistics: BatchStatistics) -> dict[str, int]:
    host, device = statistics.drain()
    if device is not None:
        host = [a + b for a, b in zip(host, from_limbs(device), strict=True)]
    return dict(zip(statistics.layout.names, host, strict=True))


LENGTHS = st.lists(st.integers(0, 300) | st.integers(0, 2**21), max_size=20)
IMAGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 4)), max_size=5)


@pytest.mark.parametrize("sequences", [[1], [1, 1, 1], [0], [2, 1]])
def test_the_shortest_sequences_first(sequences):
    """The table of values starts out with the entry for length zero alone."""
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    statistics.add(batch(sequences))
    assert list(counted(statistics).values())[: len(STATISTICS)] == expected(sequences)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LENGTHS, IMAGES), max_size=4))
def test_equals_length_by_length_arithmetic(batches):
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    for sequences, images in batches:
        statistics.add(batch(sequences, images))
    sequences = [s for lengths, _ in batches for s in lengths]
    images = [patches for _, grids in batches for patches, frames in grids for _ in range(frames)]
    values = counted(statistics)
    assert list(values.values())[: len(STATISTICS)] == expected(sequences, images)
    assert values["tokens"] == sum(sequences)
    assert values["sequences"] == sum(1 for s in sequences if s)
    assert values["positions"] == sum(sequences) + 3 * len(batches)
    assert values["micro_batches"] == len(batches)


def test_statistics_over_micro_batches_count_them():
    statistics = BatchStatistics(VectorLayout((*STATISTICS, Statistic("count", "micro_batches"))))
    for sequences in ([3], [0], [2, 1]):
        statistics.add(batch(sequences))
    statistics.add(batch([5, 4]), micro_batches=2)
    values = list(counted(statistics).values())[: len(STATISTICS) + 1]
    assert values == [*expected([3, 2, 1, 5, 4]), 5]


@pytest.mark.parametrize("length", [2**30 - 1, 2**30, 2**31, 2**40])
def test_lengths_whose_statistics_leave_int64_are_counted_in_python_integers(length):
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    for _ in range(3):
        statistics.add(batch([length, 1], [(length, 2)]))
    values = list(counted(statistics).values())[: len(STATISTICS)]
    assert values == expected([length, 1] * 3, [length] * 6)


@pytest.fixture
def cubes(monkeypatch):
    """A statistic that grows faster than the square."""
    monkeypatch.setitem(statistics_of_lengths._FORMULAS, "cube", lambda s: s * s * s)
    return BatchStatistics(VectorLayout((Statistic("cube"), Statistic("cube", "images"))))


@pytest.mark.parametrize("length", [2**20 - 1, 2**20, 2**21, 3_000_000])
def test_a_statistic_that_leaves_int64_sooner_is_counted_in_python_integers_sooner(cubes, length):
    cubes.add(batch([length, 7], [(length, 3)]))
    assert list(counted(cubes).values())[:2] == [length**3 + 343, 3 * length**3]


def test_a_device_is_not_asked_for_a_sum_that_may_leave_int64(cubes):
    def tokens(number):
        return BatchLengths(on_device([number], torch.int64), number)

    with pytest.raises(NoLengths, match="1,048,577 tokens in one micro-batch are too many to sum on a device"):
        cubes.add(tokens(2**20 + 1))
    assert set(cubes.values) == {0}
    cubes.add(tokens(2**20))
    assert from_limbs(cubes.device_values.as_subclass(torch.Tensor))[0] == 2**60


def test_tables_grow_and_stop_growing(monkeypatch):
    monkeypatch.setattr(batch_statistics, "_TABLE_LIMIT", 64)
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    for sequences in ([3], [31, 32, 33], [63], [64], [1000, 2, 0]):
        statistics.add(batch(sequences))
    assert list(counted(statistics).values())[: len(STATISTICS)] == expected([3, 31, 32, 33, 63, 64, 1000, 2])


def test_many_short_lengths_are_counted_by_value():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    batches = [list(range(16)) * 9, [15, 0, 1] * 30, [*[3] * 200, 40], list(range(41)) * 4]  # the third: one is longer
    for sequences in batches:
        statistics.add(batch(sequences))
    assert list(counted(statistics).values())[: len(STATISTICS)] == expected([s for lengths in batches for s in lengths])


def test_draining_starts_again_from_zero():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    statistics.add(batch([5]))
    statistics.count("unread_micro_batches", 2)
    assert counted(statistics)["unread_micro_batches"] == 2
    assert set(counted(statistics).values()) == {0}


def test_pixels_of_unknown_patches_are_refused_where_the_plan_prices_them():
    blind = read_lengths({"tokens": torch.zeros(1, 4), "pixel_values": torch.zeros(3, 8, 8)})
    with pytest.raises(NoLengths, match="image_grid_thw"):
        BatchStatistics(VectorLayout(STATISTICS)).add(blind)
    BatchStatistics(VectorLayout((Statistic("square"),))).add(blind)


# ---- batches that are on a device already ------------------------------------------------------------------------


class OnDevice(torch.Tensor):
    """A tensor that behaves as if it were on an accelerator: every way to read it back is an error."""

    is_cpu = False

    def _sync(self, *args, **kwargs):
        raise AssertionError("read back from the device")

    numpy = item = tolist = cpu = __bool__ = __int__ = __float__ = __index__ = nonzero = _sync


def on_device(values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype).as_subclass(OnDevice)


def plain(statistics: BatchStatistics) -> dict[str, int]:
    statistics.device_values = statistics.device_values.as_subclass(torch.Tensor)
    return counted(statistics)


@pytest.mark.parametrize(
    ("form", "sequences", "positions"),
    [
        ({"cu_seqlens": on_device([0, 3, 4, 40, -1, -1])}, [3, 1, 36], 48),
        ({"cu_seqlens": on_device([[0, 3, 4, 40, 40]])}, [3, 1, 36], 48),
        ({"cu_seqlens": on_device([0, 4, 8, 48]), "cu_seqlens_unpadded": on_device([0, 3, 4, 40])}, [3, 1, 36], 48),
        ({"cu_seqlens": on_device([[0, 3, -1], [0, 1, 37]])}, [3, 1, 36], 48),
        ({"attention_mask": on_device([[1] * 30 + [0] * 18], torch.bool)}, [30], 48),
    ],
)
def test_device_batches_are_counted_without_reading_them_back(form, sequences, positions):
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    tokens = on_device([[0] * 48])
    grid = on_device([[2, 4, 6], [1, 2, 2]])
    for _ in range(2):
        statistics.add(read_lengths({"tokens": tokens, "image_grid_thw": grid, **form}))
    values = plain(statistics)
    assert list(values.values())[: len(STATISTICS)] == expected(sequences * 2, [24, 24, 4] * 2)
    assert values["tokens"] == 2 * sum(sequences)
    assert values["sequences"] == 2 * len(sequences)
    assert values["positions"] == 2 * positions
    assert values["micro_batches"] == 2


def test_positions_that_only_the_device_knows():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    statistics.add(read_lengths({"cu_seqlens": on_device([0, 3, 9]), "cu_seqlens_padded": on_device([0, 4, 12])}))
    assert plain(statistics)["positions"] == 12


def test_device_sums_above_int64_keep_every_digit():
    statistics = BatchStatistics(VectorLayout((Statistic("square"),)))
    length = 2**30
    for _ in range(40):  # 40 x 2^60 is above 2^63
        statistics.add(BatchLengths(torch.tensor([length]).as_subclass(OnDevice), length))
    assert plain(statistics)["squared_tokens"] == 40 * length**2


def test_a_shape_on_the_device_is_known_to_the_host():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    statistics.add(read_lengths({"tokens": on_device([[0] * 5, [0] * 5])}))
    assert statistics.device_values is None
    assert list(counted(statistics).values())[: len(STATISTICS)] == expected([5, 5])


def test_tokens_of_skipped_steps():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    statistics.add(batch([5, 6]))
    statistics.begin_step()
    statistics.add(batch([7]))
    statistics.add(BatchLengths(on_device([8], torch.int64), 8))
    statistics.mark_unlearned()
    statistics.begin_step()
    statistics.add(BatchLengths(on_device([9], torch.int64), 9))
    values = plain(statistics)
    assert values["unlearned_tokens"] == 15
    assert values["tokens"] == 5 + 6 + 7 + 8 + 9
    statistics.mark_unlearned()
    assert counted(statistics)["unlearned_tokens"] == 0


# ---- what is kept and summed later -------------------------------------------------------------------------------


def snapshot(batch, *, images):
    return Snapshots(images=images).of(batch)


def test_what_is_kept_is_what_was_there_and_equals_adding_at_once():
    at_once, later = BatchStatistics(VectorLayout(STATISTICS)), BatchStatistics(VectorLayout(STATISTICS))
    buffer, big = torch.zeros(5, dtype=torch.int32), torch.arange(0, 3000, 3)
    for last in (9, 12, 9):
        buffer.numpy()[:] = [0, 3, last, last, -1]
        batches = [
            {"tokens": torch.zeros(1, 12), "cu_seqlens": buffer, "labels": object()},
            {"tokens": torch.zeros(2, 8), "attention_mask": None, "position_ids": torch.zeros(2, 8)},
            {"input_ids": torch.zeros(1, 3000), "cu_seqlens_unpadded": big, "cu_seqlens": big},
            {"tokens": np.zeros((1, 5)), "cu_seqlens": np.array([[0, 4, 5, 0]]), "cu_seqlens_argmin": torch.tensor([3])},
            {"tokens": torch.zeros(2, 6), "cu_seqlens": torch.tensor([[0, 6, 6], [0, 2, 5]])},
            {"tokens": torch.zeros(9), "cu_seqlens": torch.tensor([[0, 4, 9, 0, 0]])},
        ]
        for one in batches:
            at_once.add(read_lengths(one))
            later.keep(snapshot(one, images=True))
    assert counted(later) == counted(at_once)


@pytest.mark.parametrize(
    "read_at_once",
    [
        [{"tokens": torch.zeros(2)}],
        {"tokens": torch.zeros(2, 8), "attention_mask": torch.ones(2, 8)},
        {"input_ids": torch.zeros(2, 8), "position_ids": torch.zeros(2, 8)},
        {"input_ids": [[1, 2]]},
        {"tokens": torch.zeros(1, 8), "cu_seqlens": on_device([0, 8])},
        {"tokens": torch.zeros(1, 6), "image_grid_thw": torch.tensor([[2, 4, 6]])},
        {"labels": torch.zeros(2)},
    ],
    ids=["list", "mask", "positions", "rows", "device", "images", "nothing"],
)
def test_what_is_not_kept(read_at_once):
    assert snapshot(read_at_once, images=True) is None


def test_kept_batches_that_cannot_be_read_are_counted_apart():
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    for kept in ({"tokens": torch.zeros(1, 3), "cu_seqlens": torch.tensor([0, 9])}, {"tokens": torch.zeros(1, 2, 3)}):
        statistics.keep(snapshot(kept, images=False))
        statistics.keep(snapshot(kept, images=False))
    statistics.keep(snapshot({"tokens": torch.zeros(3, 2)}, images=False))
    values = counted(statistics)
    assert (values["unread_micro_batches"], values["micro_batches"], values["tokens"]) == (4, 1, 6)
    assert "tokens [1, 2, 3] are not [b, s]" in str(statistics.unread)


def test_the_longest_of_each_packed_micro_batch_that_is_kept():
    sums = BatchStatistics(VectorLayout((Statistic("square", "longest"), Statistic("length"))))
    for offsets in ([0, 3, 12], [0, 4, 4], [[0, 5, 7]]):
        sums.keep(snapshot({"tokens": torch.zeros(1, 12), "cu_seqlens": torch.tensor(offsets)}, images=False))
    assert counted(sums)["square_of_longest"] == 81 + 16 + 25


def test_one_row_that_falls_and_rises_does_not_spoil_the_others():
    sums = BatchStatistics(VectorLayout(STATISTICS))
    for offsets in ([0, 3, 12], [0, 5, -1, 6, -1], [0, 0, -1], [0], [0, 7]):
        sums.keep(snapshot({"tokens": torch.zeros(1, 12), "cu_seqlens": torch.tensor(offsets)}, images=False))
    values = counted(sums)
    assert (values["tokens"], values["micro_batches"], values["unread_micro_batches"]) == (19, 4, 1)
    assert "falls and rises again" in str(sums.unread)


@pytest.mark.parametrize("most", [2, 1000])
def test_tokens_of_a_skipped_step_are_told_from_those_kept_before(monkeypatch, most):
    monkeypatch.setattr(batch_statistics, "_MOST_KEPT", most)
    statistics = BatchStatistics(VectorLayout(STATISTICS))
    for step in range(1, 4):
        statistics.begin_step()
        for _ in range(3):
            statistics.keep((1, 10**step))
        if step == 2:
            statistics.mark_unlearned()
    values = counted(statistics)
    assert (values["tokens"], values["unlearned_tokens"]) == (3330, 300)


def test_the_longest_sequence_of_each_micro_batch():
    sums = BatchStatistics(VectorLayout((Statistic("square", "longest"), Statistic("length"))))
    for sequences in ([3, 9, 4], [2], []):
        sums.add(batch(sequences))
    sums.add(BatchLengths(torch.tensor([5, 7]), 14))
    assert counted(sums)["square_of_longest"] == 81 + 4 + 49


def test_images_of_one_size_are_counted_where_no_more_is_asked():
    pixels = BatchLengths(np.array([4], np.int64), 4, unmeasured_images=True, number_of_images=3)
    sums = BatchStatistics(VectorLayout((Statistic("count", "images"),)))
    sums.add(pixels)
    assert counted(sums)["images"] == 3
    for statistics in ((Statistic("count", "images"), Statistic("length", "images")), (Statistic("length", "images"),)):
        with pytest.raises(NoLengths, match="their patches are unknown"):
            BatchStatistics(VectorLayout(statistics)).add(pixels)
    with pytest.raises(NoLengths, match="their patches are unknown"):
        sums.add(pixels._replace(number_of_images=None))


# Mutants that nothing tells apart: which of two ways ``StatisticSums.of_array`` takes, and ``_sums_of_sequences`` for no tokens,
# since both give the same sums.
