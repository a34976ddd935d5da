"""Devices in their machines: memory, links, network and power, with the source of every number.

What a plan needs beside the peaks of ``bridge.hardware``.  Bandwidths are of one device in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.flops.shapes import ConfigError
from bridge.hardware import find_peak

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """One device and what joins it to others.

    Attributes:
        name: as ``bridge devices`` lists it.
        memory: GiB that its driver shows.
        link: GB/s to the devices of the same domain (NVLink, Infinity Fabric).
        domain: devices that these links join.
        network: GB/s to all others, of the vendor's reference system.
        power: W of the device alone at its limit.
        source: the vendor's documents.
    """

    name: str
    memory: float
    link: float
    domain: int
    network: float
    power: float
    source: str

    @property
    def capacity(self) -> int:
        """Bytes of its memory."""
        return int(self.memory * GIB)


_DGX = "datasheet; network of NVIDIA DGX"
_CDNA = "data sheet; network of an eight-device platform, one 400 Gbit/s adapter each"
MACHINES = (
    Machine("a100 40gb", 39.5, 300, 8, 25, 400, f"NVIDIA A100 {_DGX} A100"),
    Machine("a100 80gb", 79.1, 300, 8, 25, 400, f"NVIDIA A100 {_DGX} A100"),
    Machine("a800 80gb", 79.1, 200, 8, 25, 400, "NVIDIA A800 datasheet; network as DGX A100"),
    Machine("h100", 79.1, 450, 8, 50, 700, f"NVIDIA H100 {_DGX} H100"),
    Machine("h800", 79.1, 200, 8, 50, 700, "NVIDIA H800 datasheet; network as DGX H100"),
    Machine("h200", 139.8, 450, 8, 50, 700, f"NVIDIA H200 {_DGX} H200"),
    Machine("h20", 95.6, 450, 8, 50, 400, "NVIDIA H20 datasheet; network as DGX H100"),
    Machine("b200", 178.4, 900, 8, 50, 1000, f"NVIDIA Blackwell {_DGX} B200"),
    Machine("b300", 268.0, 900, 8, 100, 1100, f"NVIDIA Blackwell Ultra {_DGX} B300"),
    Machine("gb200", 184.0, 900, 72, 50, 1200, "NVIDIA GB200 NVL72 datasheet"),
    Machine("gb300", 277.0, 900, 72, 100, 1400, "NVIDIA GB300 NVL72 datasheet"),
    Machine("mi300x", 191.7, 448, 8, 50, 750, f"AMD Instinct MI300X {_CDNA}"),
    Machine("mi325x", 255.7, 448, 8, 50, 1000, f"AMD Instinct MI325X {_CDNA}"),
    Machine("mi355x", 287.7, 537.6, 8, 50, 1400, f"AMD Instinct MI355X {_CDNA}"),
)
_BY_NAME = {machine.name: machine for machine in MACHINES}


def find_machine(device_name: str) -> Machine | None:
    """The machine of a device as torch or ``bridge devices`` names it; None where it is unknown."""
    peak = find_peak(device_name)
    return None if peak is None else _BY_NAME.get(peak.words)


def known_machine(device_name: str) -> Machine:
    """The machine of a device; ConfigError where it is unknown."""
    machine = find_machine(device_name)
    if machine is None:
        raise ConfigError(f"device {device_name!r}: its memory and its links are unknown; choose from {', '.join(_BY_NAME)}")
    return machine
