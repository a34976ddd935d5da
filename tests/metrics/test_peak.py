"""Where the peak comes from, and that it says so."""

import json

import pytest
import torch

from bridge.hardware import peak_flops
from bridge.metrics.peak import cpu_name, device_peak, fastest, measure_matmul


def test_the_configuration_wins():
    peak = device_peak("bf16", device_name="NVIDIA H200", configured=5, device="cpu")
    assert (peak.device, peak.flops, peak.source) == ("NVIDIA H200", 5.0, "hardware.peak_flops")


@pytest.mark.parametrize("number_format", ["bf16", "fp8"])
def test_a_known_device_has_the_tables_peak_with_its_source(number_format):
    peak = device_peak(number_format, device_name="NVIDIA H200", device="cpu")
    assert peak.flops == peak_flops("NVIDIA H200", number_format)
    assert peak.source.endswith(f"datasheet, dense {number_format}")


@pytest.mark.parametrize(("name", "reason"), [("Acme X1", "not in the table"), ("NVIDIA H200", "no rate for this")])
def test_an_unknown_peak_stays_unknown_and_names_the_remedy(name, reason):
    peak = device_peak("fp32", device_name=name, device="cpu")
    assert peak.flops is None
    assert reason in peak.source
    assert "hardware.peak_flops" in peak.source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("BRIDGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_fastest_measurement_of_a_machine_is_kept_whatever_the_load(tmp_path):
    """An idle machine, a busy one, another processor, a file that somebody has damaged."""
    first = fastest("X", "fp32", (100.0, "measured: a"))
    assert first == (100.0, "measured: a")
    busy = fastest("X", "fp32", (8.0, "measured: b"))
    assert busy == (
        100.0,
        "measured: b; the fastest measurement on this machine; the current measurement is 8% of it, so other load is running",
    )
    assert fastest("X", "fp32", (99.0, "c")) == (100.0, "c; the fastest measurement on this machine")
    assert fastest("X", "fp32", (110.0, "d")) == (110.0, "d")
    assert fastest("Y", "fp32", (1.0, "e")) == fastest("X", "bf16", (1.0, "e")) == (1.0, "e")
    file = tmp_path / "bridge" / "peaks.json"
    assert sorted(json.loads(file.read_text()).values()) == [1.0, 1.0, 110.0]
    for content in ("{", "[]", json.dumps(dict.fromkeys(json.loads(file.read_text()), "fast"))):
        file.write_text(content)
        assert fastest("X", "fp32", (5.0, "f")) == (5.0, "f")
    file.unlink()
    file.mkdir()
    assert fastest("X", "fp32", (5.0, "g")) == (5.0, "g")


def test_a_cpu_is_measured_and_labelled_so():
    peak = device_peak("fp32", device="cpu")
    assert peak.device == cpu_name() != ""
    assert peak.source.startswith("measured: fastest of ")
    assert 1e8 < peak.flops < 1e14  # FLOP/s of any processor


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device would be the GPU")
def test_without_a_gpu_the_device_is_the_cpu():
    assert device_peak("fp32", configured=1.0).device == cpu_name()


def test_the_measured_rate_is_flops_over_seconds(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("bridge.metrics.peak.time.perf_counter", lambda: float(next(ticks)))
    rate, how = measure_matmul(torch.float32, size=10, seconds=0)
    assert rate == 2 * 10**3 / 1.0
    assert how == f"measured: fastest of 3 float32 matmuls 10x10x10, {torch.get_num_threads()} thread(s)"


@pytest.mark.parametrize("number_format", ["fp8", "fp4"])
def test_a_cpu_has_no_peak_in_a_format_that_it_does_not_multiply(number_format):
    assert device_peak(number_format, device="cpu").flops is None


def test_an_unknown_format_has_no_peak():
    peak = device_peak("unknown", device_name="NVIDIA B200", device="cpu")
    assert (peak.number_format, peak.flops) == ("unknown", None)
    assert peak.source == "unknown: the number formats of the run are unknown; set hardware.peak_flops"
