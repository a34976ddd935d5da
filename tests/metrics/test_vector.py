"""What stands where in the vector, and that what an instrument adds comes back as it was."""

from __future__ import annotations

import math
from itertools import permutations

import pytest

from bridge.flops.statistics import Statistic
from bridge.metrics.place import Place
from bridge.metrics.vector import Reduce, Slice, VectorLayout

PLAN = (Statistic("length"), Statistic("square"))


def test_the_layout_follows_from_the_plan_and_the_size_of_the_job():
    layout = VectorLayout(PLAN, Place(replicas=3, replica=1))
    assert layout.names[:3] == ("tokens", "squared_tokens", "sequences")
    assert layout.names[-3:] == ("replica_work[0]", "replica_work[1]", "replica_work[2]")
    assert list(layout.range("replica_work")) == [len(layout.names) - 3, len(layout.names) - 2, len(layout.names) - 1]
    assert VectorLayout(PLAN, Place(replicas=3, replica=2)).names == layout.names
    # Without imbalance to report: one replica, or too many, of which the heaviest is known.
    assert VectorLayout(PLAN).names == VectorLayout(PLAN, Place(replicas=65)).names == layout.names[:-3]
    assert (layout.maxima, VectorLayout(PLAN, Place(replicas=65)).maxima) == ((), ("heaviest_replica",))


def test_an_instruments_slices_come_back_as_they_were_added():
    slices = (Slice("routed", 3), Slice("seconds", 2, Reduce.FLOAT), Slice("peak", reduce=Reduce.MAX), Slice("ever", kept=True))
    layout = VectorLayout((), slices=slices)
    vector, maxima = layout.zeros(), [0]
    layout.add(vector, "routed", [1, 2, 2**70])
    layout.add(vector, "routed", [1, 0, 0])
    layout.add(vector, "seconds", [0.25, -3.5])
    layout.add(vector, "ever", 7)
    layout.add(maxima, "peak", 99)
    assert layout.get(vector, "routed") == [2, 2, 2**70]
    assert layout.get(vector, "seconds") == [0.25, -3.5]
    assert (layout.get(vector, "ever"), layout.get(maxima, "peak")) == ([7], [99])
    assert "ever" in layout.kept
    assert "routed[0]" not in layout.kept


def test_numbers_have_one_sum_in_any_order():
    layout = VectorLayout((), slices=[Slice("seconds", reduce=Reduce.FLOAT)])
    sums = set()
    for numbers in permutations([0.1, 1e6 / 3, -1e-7, 0.7]):
        vector = layout.zeros()
        for number in numbers:
            layout.add(vector, "seconds", number)
        sums.add(layout.get(vector, "seconds")[0])
    (total,) = sums
    assert total == pytest.approx(0.1 + 1e6 / 3 - 1e-7 + 0.7, abs=1e-11)


@pytest.mark.parametrize("reading", [math.nan, math.inf, [1.0, 2.0]])
def test_what_cannot_be_summed_is_refused(reading):
    layout = VectorLayout((), slices=[Slice("seconds", reduce=Reduce.FLOAT)])
    with pytest.raises(ValueError, match=r"seconds is|zip"):
        layout.add(layout.zeros(), "seconds", reading)


def test_two_slices_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name: .*tokens"):
        VectorLayout(PLAN, slices=[Slice("tokens")])
