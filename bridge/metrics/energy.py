"""Energy of this rank's GPU in millijoules, from NVML's counter.

There is no reading without NVML, without a GPU, or on a part of one (MIG: the counter covers the whole card).  If any rank has no
reading, the job has none, because the sum over some ranks would look like a saving.  Ranks that share a whole GPU would each
report all of its energy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bridge.metrics.instruments import ENERGY, Instrument, Measurement, Summed
from bridge.metrics.vector import Slice

if TYPE_CHECKING:
    from bridge.metrics.throughput import Interval, Metrics

logger = logging.getLogger(__name__)

Counter = Callable[[], int]
"""Returns the millijoules since a fixed time in the past."""


@dataclass(frozen=True)
class Joules:
    """Energy of all devices in the timed part of an interval."""

    joules: float

    def metrics(self, interval: Interval) -> Metrics:
        """Energy of all devices, mean power of one, and FLOPs per joule."""
        metrics: Metrics = {
            "throughput/energy": self.joules,
            "throughput/power": self.joules / interval.seconds / interval.world_size,
        }
        if interval.timed.flops is not None and self.joules > 0:
            metrics["throughput/flops_per_joule"] = interval.timed.flops / self.joules
        return metrics


class Energy(Measurement):
    """Energy of all devices.

    Args:
        device: device of this rank.
    """

    what = ENERGY
    slices = (Slice("energy_mj"),)

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def open(self) -> EnergyMeter | None:
        return open_energy_meter(self._device)

    def measured(self, summed: Summed) -> Joules:
        return Joules(summed["energy_mj"][0] / 1e3)


class EnergyMeter(Instrument):
    """An instrument that reads a counter of millijoules.

    If the counter went back (because the driver was reloaded), the energy of that interval is unknown.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._since: int | None = None
        self._spent: int | None = 0

    def run(self) -> None:
        """Start, or continue after a pause."""
        if self._since is None:
            self._since = self._counter()

    def pause(self) -> None:
        """Stop until :meth:`run`."""
        if self._since is not None:
            self._read()
            self._since = None

    def end_step(self) -> None:
        """Read the power if the counter integrates it, because the integral needs dense samples."""
        if self._since is not None and isinstance(self._counter, PowerIntegral):
            self._read()

    def lap(self) -> int | None:
        """Millijoules since the last lap, without pauses; None if unknown."""
        if self._since is not None:
            self._read()
        spent, self._spent = self._spent, 0
        return spent

    def _read(self) -> None:
        assert self._since is not None
        now = self._counter()
        if now < self._since:
            self._spent = None
        elif self._spent is not None:
            self._spent += now - self._since
        self._since = now


class PowerIntegral:
    """A counter for devices without one (before Volta): the integral of power over time, by the trapezoidal rule.

    Args:
        milliwatts: reads the power.
        clock: reads a monotonic clock in seconds.
    """

    def __init__(self, milliwatts: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> None:
        self._milliwatts, self._clock = milliwatts, clock
        self._last = clock(), milliwatts()
        self._sum = 0.0

    def __call__(self) -> int:
        (before, power_before), (now, power) = self._last, (self._clock(), self._milliwatts())
        self._sum += (now - before) * (power_before + power) / 2
        self._last = now, power
        return round(self._sum)


def open_energy_meter(device: torch.device) -> EnergyMeter | None:
    """The meter of a CUDA device of this process; None if its energy cannot be read."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        logger.debug("no energy: nvidia-ml-py is not installed")
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    counter = nvml_counter(pynvml, uuid)
    return counter and EnergyMeter(counter)


def nvml_counter(nvml: Any, uuid: str) -> Counter | None:
    """The energy counter of one device.

    Args:
        nvml: the module ``pynvml``.
        uuid: the device's UUID, with or without ``GPU-``. It is the same in CUDA and NVML, unlike a device's number: NVML
            counts all cards of the host, CUDA those in CUDA_VISIBLE_DEVICES, perhaps in another order.

    Returns:
        None if NVML cannot be loaded, does not know the device, or counts more than this device.
    """
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID("GPU-" + uuid.removeprefix("GPU-"))
        if _is_divided(nvml, handle):
            logger.debug("no energy: the card is partitioned (MIG), so its counter covers more than this instance")
            return None
    except nvml.NVMLError as error:
        logger.debug("no energy: %s", error)
        return None
    candidates: tuple[Callable[[], Counter], ...] = (
        lambda: lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        lambda: PowerIntegral(lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
    )
    for make in candidates:
        try:
            counter = make()
            counter()
            return counter
        except nvml.NVMLError as error:
            logger.debug("no such energy reading: %s", error)
    return None


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        return nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:
        return False
