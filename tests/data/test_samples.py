"""Sample order: a function of seed and number, the same for every layout, resumable anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.corpus import Corpus
from bridge.data.samples import KINDS, FixedSamples, PackedSamples, PaddedSamples, pack
from bridge.data.schedule import BatchSchedule, MicroBatchSampler

EOD = 256


def corpus_of(lengths: list[int]) -> Corpus:
    """Document i is made of bytes that tell it apart."""
    return Corpus.of([np.full(length, i % 256, dtype=np.uint8) for i, length in enumerate(lengths)], EOD)


LENGTHS = [3, 17, 40, 8, 5, 64, 2, 31, 12, 9, 100, 7]


def make(kind: str, seq_length: int = 32, seed: int = 1) -> Any:
    return KINDS[kind](corpus_of(LENGTHS), np.arange(len(LENGTHS)), seq_length, seed)


def documents(samples: Any, count: int) -> list[int]:
    return [int(inputs[0]) for index in range(count) for inputs, _ in samples[index]]


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_an_epoch_holds_every_document_once_in_an_order_drawn_anew(kind: str) -> None:
    samples = make(kind)
    first, total = samples.samples_per_epoch(), 0
    epochs: list[list[int]] = []
    index = 0
    while len(epochs) < 3:
        seen: list[int] = []
        while len(seen) < len(LENGTHS):
            seen += [int(inputs[0]) for inputs, _ in samples[index]]
            index += 1
        epochs.append(seen)
        total += len(seen)
    assert first > 0
    assert all(sorted(epoch) == list(range(len(LENGTHS))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert documents(make(kind), 30) == documents(make(kind), 30)
    assert documents(make(kind, seed=2), 30) != documents(make(kind), 30)


@pytest.mark.parametrize("kind", ["padded", "packed", "fixed"])
def test_any_sample_can_be_read_first(kind: str) -> None:
    in_order = make(kind)
    expected = [in_order[index] for index in range(40)]
    for index in (37, 0, 12, 11, 39):
        found = make(kind)[index]
        assert len(found) == len(expected[index])
        for (inputs, labels), (inputs_0, labels_0) in zip(found, expected[index], strict=True):
            assert np.array_equal(inputs, inputs_0)
            assert np.array_equal(labels, labels_0)


def test_labels_are_the_next_tokens_and_the_last_one_ends_the_document() -> None:
    corpus = Corpus.of([np.array([1, 2, 3], dtype=np.uint8), np.arange(10, dtype=np.uint8)], EOD)
    whole = PaddedSamples(corpus, np.array([0]), 8, seed=0)[0]
    assert [part.tolist() for part in whole[0]] == [[1, 2, 3], [2, 3, EOD]]
    cut = PaddedSamples(corpus, np.array([1]), 8, seed=0)[0]
    assert [part.tolist() for part in cut[0]] == [list(range(8)), list(range(1, 9))]


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(32, 64))
def test_packing_keeps_order_fits_and_never_closes_a_pack_too_early(lengths: list[int], capacity: int) -> None:
    items = list(range(len(lengths)))
    packs = pack(items, lengths, capacity)
    assert list(itertools.chain.from_iterable(packs)) == items
    sums = [sum(lengths[item] for item in group) for group in packs]
    assert max(sums) <= capacity
    for (_, following), total in zip(itertools.pairwise(packs), sums, strict=False):
        assert total + lengths[following[0]] > capacity


def test_packed_samples_hold_what_padded_samples_hold_one_by_one() -> None:
    padded, packed = make("padded"), make("packed")
    count = packed.samples_per_epoch()
    segments = [segment for index in range(count) for segment in packed[index]]
    for (inputs, labels), index in zip(segments, range(len(LENGTHS)), strict=True):
        (expected,) = padded[index]
        assert np.array_equal(inputs, expected[0])
        assert np.array_equal(labels, expected[1])


def test_fixed_samples_cut_one_stream_without_a_gap() -> None:
    samples = make("fixed", seq_length=16)
    assert isinstance(samples, FixedSamples)
    count = samples.samples_per_epoch()
    assert count == (sum(LENGTHS) + len(LENGTHS) - 1) // 16
    pieces = [samples[index][0] for index in range(count)]
    assert all(len(inputs) == len(labels) == 16 for inputs, labels in pieces)
    stream = np.concatenate([inputs for inputs, _ in pieces] + [pieces[-1][1][-1:]])
    assert np.array_equal(np.concatenate([labels for _, labels in pieces]), stream[1:])
    order = samples.order.epoch(0)
    expected = np.concatenate([[*samples.corpus.document(d), EOD] for d in order])
    assert np.array_equal(stream, expected[: len(stream)])


# ---- which samples a step takes, and who takes them ---------------------------------------------------------------


def steps_of(schedule: BatchSchedule, count: int, mbs: int, ranks: int, **start: Any) -> list[list[int]]:
    """Samples of each step, put together from all replicas in the order they take them."""
    iterators = [iter(MicroBatchSampler(schedule, micro_batch_size=mbs, data_rank=r, data_size=ranks, **start))
                 for r in range(ranks)]  # fmt: skip
    consumed, found = start.get("consumed_samples", 0), []
    for _ in range(count):
        size = schedule.size(consumed)
        batch: list[int] = []
        for _ in range(size // (mbs * ranks)):
            for iterator in iterators:
                batch += next(iterator)
        consumed += size
        found.append(batch)
    return found


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([None, (16, 16, 100), (32, 16, 17)]))
def test_a_step_takes_the_same_samples_on_any_number_of_replicas(mbs: int, ranks: int, rampup: Any) -> None:
    schedule = BatchSchedule(64, rampup)
    batches = steps_of(schedule, 8, mbs, ranks)
    assert list(itertools.chain.from_iterable(batches)) == list(range(sum(map(len, batches))))
    assert batches == steps_of(schedule, 8, 1, 1)


def test_a_resumed_sampler_goes_on_where_the_first_one_stopped() -> None:
    schedule = BatchSchedule(12, (4, 4, 20))
    whole = steps_of(schedule, 6, 2, 2)
    done = sum(map(len, whole[:3]))
    assert steps_of(schedule, 3, 2, 2, step=3, consumed_samples=done) == whole[3:]
    assert steps_of(schedule, 3, 1, 4, step=3, consumed_samples=done) == whole[3:]


def test_skipped_steps_use_up_their_samples() -> None:
    sampler = MicroBatchSampler(
        BatchSchedule(4), micro_batch_size=2, data_rank=0, data_size=1, step=1, consumed_samples=4, skip={3}
    )
    assert [list(batch) for batch in itertools.islice(sampler, 4)] == [[4, 5], [6, 7], [12, 13], [14, 15]]


def test_the_ramp_is_megatron_cores() -> None:
    calculator = pytest.importorskip("megatron.core.num_microbatches_calculator")
    for rampup in ((4, 4, 40), (8, 8, 100), (4, 2, 17)):
        schedule = BatchSchedule(16, rampup)
        theirs = calculator.RampupBatchsizeNumMicroBatchesCalculator(16, 2, 1, False, 1, rampup[0], rampup[1], rampup[2])
        for consumed in range(0, 120, 2):
            theirs.update(consumed, consistency_check=False)
            assert schedule.size(consumed) == theirs.get_current_global_batch_size(), (rampup, consumed)


def test_every_document_of_an_epoch_reaches_some_replica() -> None:
    samples = PackedSamples(corpus_of(LENGTHS), np.arange(len(LENGTHS)), 64, seed=3)
    per_epoch = samples.samples_per_epoch()
    seen = Counter(document for document in documents(samples, per_epoch))
    assert seen == Counter(range(len(LENGTHS)))
