"""Dictionary equality on numbers worked out by hand."""

from dataclasses import replace

import pytest

from bridge.metrics.peak import Peak
from bridge.metrics.throughput import Interval, Work, doubts, throughput

TIMED = Work(
    steps=4,
    flops=8 * 10**12,
    hardware_flops=10 * 10**12,
    tokens=1000,
    positions=1250,
    sequences=20,
    data_wait_seconds=0.25,
)
WORK = replace(TIMED, steps=5, flops=10 * 10**12, tokens=1200, positions=1500, replica_work=(3, 1), stage_work=(1, 2, 3))
INTERVAL = Interval(
    work=WORK,
    timed=TIMED,
    seconds=2.0,
    world_size=8,
    peak=Peak(10**12),
    components={"mlp": 7 * 10**12, "core_attention": 3 * 10**12},
    total_flops=10**22,
    total_tokens=10**19,
    overhead_seconds=0.002,
)
TOTALS = {
    "throughput/padding_fraction": 1 - 1200 / 1500,
    "throughput/imbalance/data_parallel": 1.5,
    "throughput/imbalance/pipeline": 1.5,
    "throughput/flops/mlp": 7 * 10**12,
    "throughput/flops/core_attention": 3 * 10**12,
    "throughput/total_flops": 10**22,
    "throughput/total_tokens": 10**19,
}
RATES = {
    "throughput/step_time": 0.5,
    "throughput/tokens_per_sec": 500.0,
    "throughput/device/tokens_per_sec": 62.5,
    "throughput/samples_per_sec": 10.0,
    "throughput/data_wait_fraction": 0.125,
    "throughput/tflops": 4.0,
    "throughput/tflops/device": 0.5,
    "throughput/mfu": 0.5,
    "throughput/hfu": 0.625,
    "throughput/overhead_ms": 0.5,
}


def test_all_keys():
    assert throughput(INTERVAL) == TOTALS | RATES


def test_totals_are_integers_of_any_size():
    metrics = throughput(INTERVAL)
    assert type(metrics["throughput/total_flops"]) is int
    assert sum(v for k, v in metrics.items() if k.startswith("throughput/flops/")) == WORK.flops


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_without_a_length_of_time_there_are_no_rates(seconds):
    assert throughput(replace(INTERVAL, seconds=seconds)) == TOTALS


def test_all_keys_of_an_interval_without_a_plan():
    bare = Interval(
        work=(work := Work(steps=1, flops=None, tokens=5)),
        timed=work,
        seconds=2.0,
        world_size=1,
        total_flops=None,
        total_tokens=5,
    )
    assert throughput(bare) == {
        "throughput/step_time": 2.0,
        "throughput/tokens_per_sec": 2.5,
        "throughput/device/tokens_per_sec": 2.5,
        "throughput/samples_per_sec": 0.0,
        "throughput/data_wait_fraction": 0.0,
        "throughput/total_tokens": 5,
    }


def test_an_interval_that_was_all_warm_up_has_no_rates():
    assert throughput(replace(INTERVAL, timed=Work(steps=0, flops=0, tokens=0))) == TOTALS


@pytest.mark.parametrize("peak", [None, 0.0, float("nan")])
def test_without_a_peak_there_is_no_mfu(peak):
    expected = {key: value for key, value in (TOTALS | RATES).items() if key not in ("throughput/mfu", "throughput/hfu")}
    assert throughput(replace(INTERVAL, peak=Peak(peak))) == expected


def test_a_model_without_a_price_still_has_tokens_and_seconds():
    unpriced = replace(TIMED, flops=None, hardware_flops=None)
    work = replace(unpriced, replica_work=(), stage_work=())
    interval = replace(INTERVAL, work=work, timed=unpriced, components={}, total_flops=None)
    assert throughput(interval) == {
        "throughput/padding_fraction": 1 - 1000 / 1250,
        "throughput/total_tokens": 10**19,
        **{key: RATES[key] for key in RATES if key.split("/")[1] not in ("tflops", "mfu", "hfu")},
    }


def test_what_is_missing_is_said():
    work = replace(WORK, unread_micro_batches=3, unlearned_tokens=70)
    metrics = throughput(replace(INTERVAL, work=work))
    assert metrics == TOTALS | RATES | {"throughput/unread_micro_batches": 3, "throughput/unlearned_tokens": 70}


@pytest.mark.parametrize(
    ("work", "ratio"), [((5, 5, 5), 1.0), ((9, 0, 0), 3.0), ((3, 1), 1.5), ((0, 0), None), ((5,), None), ((), None)]
)
def test_imbalance_is_largest_over_mean(work, ratio):
    metrics = throughput(replace(INTERVAL, work=replace(WORK, replica_work=work, stage_work=())))
    assert metrics.get("throughput/imbalance/data_parallel") == ratio
    assert "throughput/imbalance/pipeline" not in metrics


def test_mfu_above_one_is_doubted():
    assert doubts(throughput(INTERVAL)) == []
    assert doubts(throughput(replace(INTERVAL, peak=Peak(None)))) == []
    (sentence,) = doubts(throughput(replace(INTERVAL, peak=Peak(0.25e12))))
    assert sentence.startswith("MFU 2.00 and HFU 2.50: no device is faster than its peak. Likely causes:")
    (sentence,) = doubts(throughput(replace(INTERVAL, peak=Peak(0.55e12))))
    assert sentence.startswith("HFU 1.14:")


MIXED = replace(
    TIMED,
    formats={"fp8": 6 * 10**12, "bf16": 2 * 10**12},
    hardware_formats={"fp8": 6 * 10**12, "bf16": 4 * 10**12},
)
PEAKS = {"fp8": 2e12, "bf16": 1e12}


def test_mfu_of_several_formats_is_the_ideal_time_over_the_time():
    """8 devices x 2 s; ideal: 6 / 2 + 2 / 1 = 5 device-seconds, with what runs again 7."""
    metrics = throughput(replace(INTERVAL, timed=MIXED, peak=Peak(2e12, PEAKS)))
    several = {"throughput/mfu": 5 / 16, "throughput/hfu": 7 / 16, "throughput/mfu_bf16": 0.5}
    several |= {"throughput/format_fraction/fp8": 0.75, "throughput/format_fraction/bf16": 0.25}
    assert metrics == pytest.approx(TOTALS | RATES | several, rel=1e-15)


def test_one_format_is_held_against_its_peak_as_ever():
    whole = replace(MIXED, formats={"bf16": 8 * 10**12, "unknown": 0}, hardware_formats={"bf16": 10**13})
    assert throughput(replace(INTERVAL, timed=whole, peak=Peak(1e12, PEAKS))) == TOTALS | RATES


@pytest.mark.parametrize("peaks", [{"fp8": 2e12, "bf16": None}, {"fp8": None, "bf16": 1e12}, {"bf16": 1e12}])
def test_a_format_without_a_peak_gives_no_mfu(peaks):
    metrics = throughput(replace(INTERVAL, timed=MIXED, peak=Peak(1e12, peaks)))
    assert not {"throughput/mfu", "throughput/hfu", "throughput/mfu_bf16"} & metrics.keys()
    assert metrics["throughput/format_fraction/fp8"] == 0.75


def test_a_given_peak_holds_for_all_formats():
    """hardware.peak_flops; BF16's own is not known then."""
    metrics = throughput(replace(INTERVAL, timed=MIXED, peak=Peak(2e12)))
    assert (metrics["throughput/mfu"], metrics["throughput/hfu"]) == (0.25, 0.3125)
    assert "throughput/mfu_bf16" not in metrics
