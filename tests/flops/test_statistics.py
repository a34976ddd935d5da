"""Every closed form against the sum it stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops.statistics import Statistic

LENGTHS = st.integers(0, 300)
SIZES = st.integers(1, 70)


@given(LENGTHS, SIZES)
def test_pairs_are_what_masks_let_through(s, size):
    positions = range(s)
    causal = [(q, k) for q in positions for k in positions if k <= q]
    assert Statistic("causal_pairs").of(s) == len(causal)
    assert Statistic("square").of(s) == s * s
    assert Statistic("window_pairs", sizes=(size,)).of(s) == sum(q - k < size for q, k in causal)
    assert Statistic("topk_pairs", sizes=(size,)).of(s) == sum(min(q + 1, size) for q in positions)
    assert Statistic("chunk_pairs", sizes=(size,)).of(s) == sum(q // size == k // size for q, k in causal)
    near = sum(abs(q - k) < size for q in positions for k in positions)
    assert Statistic("bidirectional_window_pairs", sizes=(size,)).of(s) == near
    assert Statistic("chunk_squares", sizes=(size,)).of(s) == sum(q // size == k // size for q in positions for k in positions)


@given(st.integers(0, 3000), SIZES, SIZES)
def test_compressed_keys(s, ratio, topk):
    seen = [t // ratio for t in range(1, s + 1)]
    assert Statistic("compressed_pairs", sizes=(ratio,)).of(s) == sum(seen)
    assert Statistic("compressed_topk_pairs", sizes=(ratio, topk)).of(s) == sum(min(topk, keys) for keys in seen)


def test_areas_of_megatron_and_maxtext():
    # MaxText PR 3592: T W - W^2 / 2 with W clipped to T.
    area = {(8192, 1024): 7864320, (8192, 4096): 25165824, (2048, 512): 917504, (512, 1024): 131072, (8192, 128): 1040384}
    for (s, window), expected in area.items():
        assert Statistic("doubled_window_area", sizes=(window,)).of(s) == 2 * expected
    exact = {(8192, 1024): 7864832, (8192, 4096): 25167872, (2048, 512): 917760, (1, 1024): 1, (512, 1024): 131328}
    for (s, window), expected in exact.items():
        assert Statistic("window_pairs", sizes=(window,)).of(s) == expected
    # t = min(topk, s // ratio): s t - ratio t^2 / 2
    assert Statistic("doubled_compressed_topk_area", sizes=(4, 512)).of(4096) == 2 * (4096 * 512 - 2 * 512**2)
    assert Statistic("doubled_compressed_topk_area", sizes=(4, 512)).of(4099) == 2 * (4099 * 512 - 2 * 512**2)
    assert Statistic("doubled_compressed_topk_area", sizes=(4, 512)).of(100) == 2 * (100 * 25 - 2 * 25**2)


@pytest.mark.parametrize(
    "statistic",
    [
        Statistic("count"),
        Statistic("length"),
        Statistic("square"),
        Statistic("causal_pairs"),
        Statistic("window_pairs", sizes=(7,)),
        Statistic("doubled_window_area", sizes=(7,)),
        Statistic("chunk_pairs", sizes=(5,)),
        Statistic("chunk_squares", sizes=(5,)),
        Statistic("compressed_pairs", sizes=(4,)),
        Statistic("compressed_topk_pairs", sizes=(4, 3)),
        Statistic("doubled_compressed_topk_area", sizes=(4, 3)),
        Statistic("quotient", "images", (4,)),
    ],
    ids=lambda statistic: statistic.name,
)
def test_one_formula_serves_integers_and_arrays(statistic):
    lengths = np.array([0, 1, 3, 4, 5, 16, 17, 100, 2**20], dtype=np.int64)
    assert statistic.of(lengths).tolist() == [statistic.of(int(length)) for length in lengths]
    assert statistic.sum(lengths.tolist()) == int(statistic.of(lengths).sum())


def test_names_are_unique_and_known_ones_short():
    assert Statistic("length").name == "tokens"
    assert Statistic("length", "images").name == "patches"
    assert Statistic("window_pairs", sizes=(1024,)).name == "window_pairs[1024]"
    assert Statistic("quotient", "images", (4,)).name == "quotient_of_images[4]"
    with pytest.raises(KeyError, match="unknown statistic 'cubes'"):
        Statistic("cubes")


def test_the_prefix_window_of_maxtext_is_not_cut_at_the_length():
    """2 s W - W^2: 2 x 6 x 4 - 16, and less than nothing below half a window."""
    assert [Statistic("doubled_prefix_area", sizes=(4,)).of(s) for s in (6, 4, 2, 1)] == [32, 16, 0, -8]
