"""Numbers for people: exact texts, and properties over many sizes."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.planning.quantities import Quantity
from bridge.text import count, digits_of, duration, exactly, gib, in_words, percent, seconds, shortened, significant, with_unit


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 4, "0"),
        (13.0, 3, "13"),
        (0.0349671, 4, "0.03497"),
        (999_999, 4, "1,000,000"),
        (1234.56, 3, "1,230"),
        (-0.00012, 4, "-0.00012"),
        (0.00001234, 3, "1.23e-05"),
        (2e16, 3, "2e+16"),
        (float("inf"), 4, "inf"),
        (float("nan"), 4, "nan"),
    ],
)
def test_significant(value, digits, text):
    assert significant(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (999.96, "1 kFLOP"),
        (999_949, "999.9 kFLOP"),
        (999_999, "1 MFLOP"),
        (421_645_529_382_912, "421.6 TFLOP"),
        (6.8e19, "68 EFLOP"),
        (-1500, "-1.5 kFLOP"),
        (Fraction(1, 4), "0.25 FLOP"),
        (1e36, "1,000,000 QFLOP"),
    ],
)
def test_with_unit(value, text):
    assert with_unit(value, "FLOP") == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (999, "999"), (999.6, "1 k"), (1234, "1.23 k"), (8.03e9, "8.03 G")])
def test_without_a_unit(value, text):
    assert with_unit(value, digits=3) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (804_224, "804 thousand"),
        (999_500, "1 million"),
        (999_960_000, "1 billion"),
        (671e9, "671 billion"),
        (1.5e15, "1,500 trillion"),
        (1e21, "1,000,000,000 trillion"),
    ],
)
def test_in_words(value, text):
    assert in_words(value) == text


def test_whole_numbers_and_shares():
    assert (exactly(1234567), exactly(Fraction(10, 3)), exactly(Fraction(4, 2))) == ("1,234,567", "3.333", "2")
    assert (count(1, "pass", "passes"), count(4096, "token"), count(0, "pass", "passes")) == (
        "1 pass",
        "4,096 tokens",
        "0 passes",
    )
    assert (percent(0.3742), percent(Fraction(1, 3), 2), percent(12.5, 0)) == ("37.4%", "33.33%", "1,250%")
    assert (digits_of(1234567), digits_of(1234567.0), digits_of(0.5)) == ("1,234,567", "1,234,600", "0.5")
    assert (gib(80 * 2**30), gib(2**40, 0)) == ("80.0 GiB", "1,024 GiB")


@pytest.mark.parametrize(("value", "text"), [(1.4, "1.4 s"), (0.3462, "346 ms"), (0.99996, "1 s"), (90, "90 s"), (0, "0 ms")])
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(-1, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_duration(value, text):
    assert duration(value) == text


@given(st.floats(1e-3, 1e32, allow_nan=False), st.integers(3, 6))
def test_at_most_so_many_digits_and_close_when_read_again(value, digits):
    text = with_unit(value, digits=digits)
    written = re.sub("[^0-9]", "", text).strip("0")
    assert len(written) <= digits
    if value < 1e20:  # prefixes that are read stop at E
        assert float(Quantity.parse(text.replace(" ", "")).number) == pytest.approx(value, rel=0.5 * 10.0 ** (1 - digits))


def test_a_long_text_keeps_its_ends():
    assert shortened("a" * 11, 11) == "a" * 11
    assert shortened("abcdefghijkl", 11) == "abcd...ijkl"
    assert len(shortened("x" * 5000, 200)) == 199  # as much of either end
