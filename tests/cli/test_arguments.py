"""Numbers as people write them, and the nearest match of a misspelled name."""

from __future__ import annotations

import argparse
from fractions import Fraction

import pytest

from bridge.cli import arguments as options
from bridge.flops import ConfigError
from bridge.planning.quantities import plain, spread
from bridge.planning.training_run import Range


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("1024", 1024, 1024),
        ("15T", 15 * 10**12, 15 * 10**12),
        ("1e24", 10**24, 10**24),
        ("2.5k", 2500, 2500),
        (".4", Fraction(2, 5), Fraction(2, 5)),
        ("0.35-0.45", Fraction(7, 20), Fraction(9, 20)),
        ("1e-3-2e-3", Fraction(1, 1000), Fraction(2, 1000)),
        ("1B-1.5T", 10**9, 1_500_000_000_000),
    ],
)
def test_amounts_are_exact(text, low, high):
    assert options.amount(text) == Range(low, high)
    assert type(options.amount(text).low) is type(low)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "0.0", "2-1", "1-", "1--2", "1 T", "15t", "nan", "inf", "1e", "1,5"])
def test_what_is_no_amount(text):
    with pytest.raises(argparse.ArgumentTypeError):
        options.amount(text)


@pytest.mark.parametrize("text", ["1e41", "1e-41", "1e999999999", "9" * 61, "0.5-1e400"])
def test_numbers_that_nobody_means_are_refused_before_they_are_computed(text):
    with pytest.raises(argparse.ArgumentTypeError, match="powers of ten go to 40"):
        options.amount(text)


def test_counts_are_whole():
    assert (options.counts("1.5T"), options.counts("8-16")) == (Range.of(1_500_000_000_000), Range(8, 16))
    for text in ("8.5", "0.3", "8-8.5", "1e-3"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number"):
            options.counts(text)


def test_one_number_is_no_range():
    assert options.number("3.35T") == 3.35e12
    with pytest.raises(argparse.ArgumentTypeError, match="must be one number"):
        options.number("1-2")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (options.fractions, "40%", Range.of(Fraction(2, 5))),
        (options.fractions, "35-45%", Range(Fraction(7, 20), Fraction(9, 20))),
        (options.fraction, "80%", 0.8),
        (options.money, "$2.5", Range.of(Fraction(5, 2))),
        (options.watts, "1.2 kW", Range.of(1200)),
        (options.flops_rate, "989.4 TFLOP/s", 989.4e12),
        (options.byte_rate, "3.35TB/s", 3.35e12),
        (options.seconds, "0.2s", 0.2),
        (options.positive, "1,024", 1024),
        (options.positive, "2k", 2000),
        (options.length, "2k", 2048),
        (options.sizes, "1024x768,512x512", ((1024, 768), (512, 512))),
    ],
)
def test_units(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (options.fractions, "40", "must be a fraction of 1 or a percentage"),
        (options.fractions, "$0.4", "without a unit or in %"),
        (options.money, "40%", r"without a unit or in \$"),
        (options.amount, "700W", "without a unit"),
        (options.flops_rate, "3.35TB/s", "without a unit or in FLOP/s"),
        (options.positive, "400%", "must be a positive integer"),
        (options.positive, "1-2", "must be a positive integer"),
    ],
)
def test_wrong_units(read, text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        read(text)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "x", ""])
def test_positive_integers(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive integer"):
        options.positive(text)
    assert options.lengths("4096,512") == (4096, 512)
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive integer"):
        options.lengths(f"1,{text}")


def test_hints():
    assert options.hint("megatrn", ["exact", "megatron"]) == " (did you mean megatron?)"
    assert options.hint("zzz", ["exact", "megatron"]) == ""


def test_devices():
    assert options.known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert options.known_bandwidth("H100 PCIe") == 2e12
    for call, words in (
        (lambda: options.known_device("h101"), r"'h101' is unknown or ambiguous \(did you mean h100\?\)"),
        (lambda: options.known_peak("A100", "fp8"), "has no fp8 peak, only bf16, fp16"),
        (lambda: options.known_bandwidth("A100"), "different memory"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def test_numbers_for_people_and_for_programs():
    assert [plain(value) for value in (3, Fraction(4, 2), Fraction(1, 2), 0.5, None, Range.of(7), Range(Fraction(1, 2), 7))] == [
        3, 2, 0.5, 0.5, None, 7, [0.5, 7],
    ]  # fmt: skip
    assert (spread(Range(1, 2), str), spread(Range.of(1), str), spread(Range(1.01, 1.02), "{:.1f}".format)) == (
        "1 to 2",
        "1",
        "1.0",
    )
