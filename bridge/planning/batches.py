"""Batches that are asked about, as vectors of a plan's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from operator import add

from bridge.flops import Plan
from bridge.flops.moments import Moments

Number = int | Fraction


def equal_sequences(plan: Plan, number: int, length: int, image_patches: Sequence[int] = ()) -> list[Number]:
    """The vector of this many sequences of one length, by the rules of the public function."""
    tokens = number * length
    sequences = plan.measure_moments(Moments.of(number, tokens, tokens * length, length))
    return list(map(add, sequences, plan.measure((), image_patches)))
