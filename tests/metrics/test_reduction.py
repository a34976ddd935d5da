"""Integers beyond int64 survive the sum; without torch.distributed the sum is one's own numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge.metrics.reduction import LIMB_BITS, PendingSum, collective_device, from_limbs, integers, to_limbs

VALUES = st.lists(st.integers(-(2 ** (2 * LIMB_BITS)), 2 ** (2 * LIMB_BITS) - 1), min_size=1, max_size=8)


@given(VALUES)
def test_limbs_come_together_again(values):
    assert from_limbs(to_limbs(values)) == values


@given(st.lists(st.lists(st.integers(0, 2**80 - 1), min_size=3, max_size=3), min_size=1, max_size=50))
def test_limbs_add_like_the_numbers(ranks):
    summed = sum(to_limbs(values) for values in ranks)
    assert from_limbs(summed) == [sum(column) for column in zip(*ranks, strict=True)]


def test_a_million_ranks_at_the_bound_fit_into_int64():
    limbs = to_limbs([2**80 - 1]).tolist()
    assert all(limb * 2**20 < 2**63 for row in limbs for limb in row)


@pytest.mark.parametrize("value", [-(2**80) - 1, 2**80])
def test_values_outside_the_bound_are_an_error_before_anything_is_sent(value):
    with pytest.raises(OverflowError, match=str(value)):
        to_limbs([1, value])


def test_no_numbers():
    assert integers([]).shape == (0,)
    assert to_limbs([]).shape == (2, 0)
    assert PendingSum(to_limbs([5])).maxima() == []


def test_alone():
    pending = PendingSum(to_limbs([3, 2**70]), torch.tensor([[4, 1], [0, 1]]))
    assert pending.ready()
    assert pending.wait() == [7, 2**70 + 2**40 + 1]
    assert collective_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


# Mutants that change speed alone: copies of ``_start_on_cuda`` that block the host, which would wait for the device.
