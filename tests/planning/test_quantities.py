"""Quantities as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bridge.flops import ConfigError
from bridge.planning.quantities import Quantity, length
from bridge.planning.training_run import Range


@pytest.mark.parametrize(
    ("text", "value", "unit", "rounding"),
    [
        ("800", 800, "", Fraction(1, 2)),
        ("13,812", 13812, "", Fraction(1, 2)),
        ("40%", Fraction(2, 5), "%", Fraction(1, 200)),
        ("41.25 %", Fraction(33, 80), "%", Fraction(1, 20000)),
        ("400TFLOP/s", 400 * 10**12, "FLOP/s", Fraction(10**12, 2)),
        ("328.139 TFLOPs/s", 328139 * 10**9, "FLOP/s", Fraction(10**9, 2)),
        ("1.2PFLOPS", 1200 * 10**12, "FLOP/s", Fraction(10**14, 2)),
        ("$2.5", Fraction(5, 2), "$", Fraction(1, 20)),
        ("700 W", 700, "W", Fraction(1, 2)),
        ("4.8TB/s", 4800 * 10**9, "B/s", Fraction(10**11, 2)),
        ("13.75s", Fraction(55, 4), "s", Fraction(1, 200)),
        ("3.6B", 3600 * 10**6, "", Fraction(10**8, 2)),
        ("1e24", 10**24, "", Fraction(10**24, 2)),
        ("64862437376", 64862437376, "", Fraction(1, 2)),
    ],
)
def test_value_unit_and_rounding(text, value, unit, rounding):
    assert Quantity.parse(text) == Quantity(Range.of(value), unit, rounding)


def test_ranges():
    assert Quantity.parse("35-45%").value == Range(Fraction(35, 100), Fraction(45, 100))
    assert Quantity.parse("$2-2.5").value == Range(2, Fraction(5, 2))
    with pytest.raises(ConfigError, match="35-0.45 must be one number"):
        _ = Quantity.parse("0.35-0.45").number


@pytest.mark.parametrize("text", ["", "x", "-1", "$1%", "1 T", "400TFLOP/m", "1,5", "nan", "40%%", "5-3"])
def test_what_is_none(text):
    with pytest.raises(ConfigError):
        Quantity.parse(text)


@pytest.mark.parametrize(("text", "tokens"), [("4096", 4096), ("4k", 4096), ("128k", 131072), ("10M", 10 * 1024**2)])
def test_lengths(text, tokens):
    assert length(text) == tokens


@pytest.mark.parametrize("text", ["0", "k", "4K5", "-4", "1.5k", ""])
def test_what_is_no_length(text):
    with pytest.raises(ConfigError, match="must be a positive integer"):
        length(text)
