"""The published comparison of bytes against tokens: its anchors, and every position of its sliders, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from bridge.flops import ConfigError
from bridge.planning.exhibits.byte_latent import PUBLISHED, compare, iso_cost_curve, iso_cost_width

PATCH_SIZES = [tenths / 10 for tenths in range(10, 101)]
WIDTHS = range(512, 8193, 128)
LOCAL_LAYERS = range(2, 25, 2)


def test_anchors():
    default = compare()
    assert round(default.bpe_per_byte, 2) == 1134671127.27
    assert round(default.blt_global, 2) == 985725672.73
    assert default.blt_local == 359419904.0
    assert round(default.blt_total, 2) == 1345145576.73
    assert f"{default.advantage:.1f}" == "18.5"
    long_patches = compare(10.0, 2560, 10)
    assert (long_patches.blt_total, f"{long_patches.advantage:.1f}") == (777936896.0, "-31.4")
    wide = compare(patch_size=8.0, d_model=4096, local_layers=10)
    assert (wide.blt_total, f"{wide.advantage:.1f}") == (1692432384.0, "-37.4")


def stack(layers, heads, d, ctx, vocab):
    a = (d // heads) * heads
    return 4 * d + 6 * layers * d * a + 2 * layers * ctx * a + 2 * layers * a * d + 16 * layers * d**2 + 2 * d * vocab


def cross(layers, kv, d):
    return layers * (8 * d**2 + 4 * kv * d)


def test_every_slider_position():
    """The page's formulas once more, from its own order of operations."""
    bpe = {d: stack(26, 20, d, int(8192 / 4.4), 128000) / 4.4 for d in WIDTHS}
    latent = {(p, d): stack(26, 20, d, int(8192 / p), 0) / p for p in PATCH_SIZES for d in WIDTHS}
    local = {
        (p, n): stack(n, 16, 1024, 512, 256) + cross(n / 2, 512, 1024) + cross(n / 2, 512 // p, 1024)
        for p in PATCH_SIZES
        for n in LOCAL_LAYERS
    }
    for p in PATCH_SIZES:
        for d in WIDTHS:
            for n in LOCAL_LAYERS:
                got = compare(p, d, n)
                assert (got.bpe_per_byte, got.blt_global, got.blt_local) == (bpe[d], latent[p, d], local[p, n])
                total = latent[p, d] + local[p, n]
                assert (got.blt_total, got.advantage) == (total, 100 * (total - bpe[d]) / bpe[d])


def test_narrowed_attention_is_reported():
    assert (compare(d_model=2560).narrowed_by, compare(d_model=2560).notice) == (0, "")
    narrowed = compare(d_model=4096)
    assert (narrowed.attention_width, narrowed.narrowed_by) == (4080, 16)
    assert narrowed.notice == "the heads do not divide d_model=4096: attention is priced at 4080 columns, 16 fewer"


def test_other_settings():
    longer = replace(PUBLISHED, bytes_per_token=5.0, vocab_size=256000)
    assert compare(setting=longer).bpe_per_byte == stack(26, 20, 2560, int(8192 / 5.0), 256000) / 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 0}, "patch_size=0 must be"),
        ({"patch_size": 9000}, "patch_size=9000 must be"),
        ({"d_model": 19}, "d_model=19 must be an integer of at least 20"),
        ({"d_model": 2560.0}, r"d_model=2560\.0 must be an integer"),
        ({"local_layers": 0}, "local_layers=0 must be a positive integer"),
    ],
)
def test_impossible_sliders(arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare(**arguments)


@pytest.mark.parametrize("patch_size", [1.0, 3.3, 4.4, 6.0, 10.0])
@pytest.mark.parametrize("width", [640, 2560, 5120])
def test_the_width_of_equal_cost_is_the_inverse_of_the_comparison(patch_size, width):
    cost = compare(patch_size, width, 6).blt_total
    assert iso_cost_width(patch_size, cost, 6) == pytest.approx(width, rel=1e-12)


def test_width_grows_about_as_the_root_of_the_patch_size():
    curve = iso_cost_curve([4.4, 6.0, 8.0, 10.0])
    assert [point.patch_size for point in curve] == [4.4, 6.0, 8.0, 10.0]
    assert curve[0].width == pytest.approx(2560, rel=1e-12)
    for point in curve:
        assert point.root_width == pytest.approx(2560 * sqrt(point.patch_size / 4.4))
        assert point.width == pytest.approx(point.root_width, rel=0.03)
    # Growing in step with the patch size is not free: the same step costs more than BPE at its own width saves.
    assert compare(8.8, 5120).blt_total > 1.5 * compare(4.4, 2560).blt_total


@pytest.mark.parametrize("per_byte", [1e6, compare(4.4, local_layers=24).blt_local], ids=["more", "all of it"])
def test_no_width_is_cheap_enough_when_the_local_models_cost_more(per_byte):
    with pytest.raises(ConfigError, match="leaves nothing for the latent transformer: 24 local layers"):
        iso_cost_width(4.4, per_byte=per_byte, local_layers=24)
