"""Energy: a counter's arithmetic, the device behind a UUID, and nothing at all where there is no NVML."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from bridge.metrics.energy import Energy, EnergyMeter, Joules, PowerIntegral, nvml_counter, open_energy_meter
from bridge.metrics.instruments import Instruments
from bridge.metrics.throughput import Interval, Work, throughput


def counting(*readings: int):
    """A counter that gives these numbers."""
    return iter(readings).__next__


def test_pauses_are_left_out_and_laps_have_no_gap():
    meter = EnergyMeter(counting(100, 130, 1000, 1007, 1010, 1030))
    meter.run()
    meter.run()
    meter.pause()  # 30
    meter.pause()
    meter.run()
    assert meter.lap() == 30 + 7
    meter.end_step()
    assert meter.lap() == 3
    meter.pause()
    assert meter.lap() == 20
    assert meter.lap() == 0


def test_an_interval_in_which_the_counter_went_back_is_unknown_and_the_next_one_is_not():
    meter = EnergyMeter(counting(5_000_000_000_000, 12, 20, 50, 80))
    meter.run()
    meter.pause()
    meter.run()
    assert meter.lap() is None
    assert meter.lap() == 30


def test_power_is_integrated_at_every_step():
    seconds = iter([0.0, 1.0, 3.0, 3.5])
    milliwatts = iter([100_000, 200_000, 400_000, 400_000])
    meter = EnergyMeter(PowerIntegral(milliwatts.__next__, seconds.__next__))
    meter.run()
    meter.end_step()
    assert meter.lap() == 600_000 + 200_000


def test_a_counter_that_fails_is_one_warning_and_no_reading(caplog):
    def lost():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    class Opened(Energy):
        def open(self):
            return EnergyMeter(lost)

    instruments = Instruments([Opened(torch.device("cpu"))])
    for _ in range(3):
        instruments.run()
        instruments.end_step()
        assert instruments.lap() == {}
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["energy is not reported from here on"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without NVML")
def test_without_nvml_there_is_no_meter_and_no_noise(caplog):
    with caplog.at_level(logging.WARNING):
        assert nvml_counter(pynvml, "GPU-0") is None
        assert open_energy_meter(torch.device("cpu")) is None
    assert caplog.records == []


class Card:
    """pynvml's functions over one card."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *, mig=None, energy=None, power=None):
        self.mig, self.energy, self.power = mig, energy, power

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1234":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetMigMode(self, handle):
        return [self._known(self.mig), self.mig]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self._known(self.energy)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._known(self.power)

    @staticmethod
    def _known(value):
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_the_device_is_found_by_cudas_uuid(uuid):
    assert nvml_counter(Card(energy=77, mig=0), uuid)() == 77
    assert nvml_counter(Card(energy=77), uuid)() == 77


def test_a_part_of_a_card_has_no_reading_of_its_own():
    assert nvml_counter(Card(energy=77, mig=1), "1234") is None
    assert nvml_counter(Card(energy=77), "MIG-1234") is None


def test_a_card_without_a_counter_is_integrated_and_one_without_power_is_unknown():
    assert isinstance(nvml_counter(Card(power=250_000), "1234"), PowerIntegral)
    assert nvml_counter(Card(), "1234") is None


@pytest.mark.parametrize("uuid", ["1234", "another card's"])
def test_a_card_that_nvml_does_not_know_has_no_meter(monkeypatch, uuid):
    monkeypatch.setitem(sys.modules, "pynvml", Card(energy=77))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    assert isinstance(open_energy_meter(torch.device("cuda")), EnergyMeter if uuid == "1234" else type(None))


def test_keys_of_an_interval():
    timed = Work(steps=4, flops=6 * 10**15, tokens=100)
    measured = {"energy": Joules(3000.0)}
    interval = Interval(work=timed, timed=timed, seconds=2.0, world_size=4, total_flops=1, total_tokens=1, measured=measured)
    row = throughput(interval)
    assert (row["throughput/energy"], row["throughput/power"]) == (3000.0, 375.0)
    assert row["throughput/flops_per_joule"] == 2 * 10**12
