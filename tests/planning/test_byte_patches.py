"""Patches always cover the text, begin where they should, and are counted right."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops import ConfigError
from bridge.planning.byte_patches import (
    PatchStatistics,
    entropy_patches,
    next_byte_entropies,
    space_patches,
    strided_patches,
    threshold_for,
)

TEXT = b"the cat and the hat and the rat sat; then the cat left."


@given(st.binary(min_size=1, max_size=300), st.integers(1, 9))
def test_patches_cover_the_text(data, stride):
    entropies = next_byte_entropies(data)
    threshold = max(entropies) / 2
    for patches in (strided_patches(data, stride), space_patches(data), entropy_patches(entropies, threshold)):
        assert sum(patches) == len(data)
        assert min(patches) > 0


def test_where_patches_begin():
    assert strided_patches(b"abcdefgh", 3) == [3, 3, 2]
    assert space_patches(b"ab cd, ef") == [3, 4, 2]
    assert space_patches("naïve ".encode() + b"x") == [len("naïve ".encode()), 1] or space_patches(b"a b") == [2, 1]
    assert entropy_patches([9.0, 0.1, 2.0, 0.3, 1.1, 1.0], 1.0) == [2, 2, 2]
    assert strided_patches(b"", 3) == space_patches(b"") == entropy_patches([], 1.0) == []


def test_entropies_from_counts():
    # After "a" come b, b, c: the entropy of (2/3, 1/3); after "b" always a; after "c" always a.
    entropies = next_byte_entropies(b"ababaca", order=1)
    mixed = log(3) - 2 * log(2) / 3
    assert entropies == pytest.approx([0, mixed, 0, mixed, 0, mixed, 0])
    # Three bytes of context, unless told otherwise: "xab" does not tell what comes next, "1xab" does.
    assert next_byte_entropies(b"1xabc2xabd")[4] == log(2)
    assert next_byte_entropies(b"1xabc2xabd", 4)[4] == 0


@pytest.mark.parametrize("patch_size", [2.0, 4.4, 8.0])
def test_the_threshold_meets_the_patch_size(patch_size):
    # All entropies differ, so that the threshold can meet every size.
    entropies = [(i * 7919 % 9973) / 9973 for i in range(5000)]
    patches = entropy_patches(entropies, threshold_for(entropies, patch_size))
    assert len(patches) == round(5000 / patch_size)


def test_statistics():
    patches = space_patches(TEXT)
    found = PatchStatistics.of(patches)
    assert (found.bytes, found.patches) == (len(TEXT), 13)
    assert found.mean == len(TEXT) / 13
    assert found.histogram == {n: patches.count(n) for n in sorted(set(patches))}
    assert (found.median, found.longest) == (4, 5)


def test_bad_arguments():
    with pytest.raises(ConfigError, match="stride=0"):
        strided_patches(b"abc", 0)
    with pytest.raises(ConfigError, match="order=0"):
        next_byte_entropies(b"abc", 0)
    with pytest.raises(ConfigError, match=r"patch_size=0\.5"):
        threshold_for([1.0, 2.0], 0.5)
    with pytest.raises(ConfigError, match="must be positive"):
        PatchStatistics.of([])
    with pytest.raises(ConfigError, match="must be positive"):
        PatchStatistics.of([3, 0])
    assert PatchStatistics.of([1]).mean == 1
