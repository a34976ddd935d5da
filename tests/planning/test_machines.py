"""Devices in their machines: each found by the names that a driver gives it, and unknown where any other would be guessed."""

from __future__ import annotations

import pytest

from bridge.flops import ConfigError
from bridge.hardware import PEAKS, find_peak, peak_bandwidth
from bridge.planning.machines import GIB, MACHINES, Machine, find_machine, known_machine

#: GB of memory by the vendor's datasheet.
SOLD = {"a100 40gb": 40, "a100 80gb": 80, "a800 80gb": 80, "h100": 80, "h800": 80, "h200": 141, "h20": 96, "b200": 180,
        "b300": 288, "gb200": 186, "gb300": 288, "mi300x": 192, "mi325x": 256, "mi355x": 288}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_machine_has_a_peak_and_is_found_by_its_own_name(machine: Machine):
    assert [known.name for known in MACHINES].count(machine.name) == 1
    assert machine.name in {peak.words for peak in PEAKS}
    assert find_machine(machine.name) is known_machine(machine.name.upper()) is machine
    assert peak_bandwidth(machine.name)
    assert machine.source
    # Faster than the network, and a driver shows less than what is sold.
    assert machine.link > machine.network
    assert 0.93 * SOLD[machine.name] < machine.memory < SOLD[machine.name]
    assert machine.domain == (72 if machine.name.startswith("gb") else 8)


def test_memory_in_bytes():
    assert GIB == 1024**3
    assert Machine("x", 79.5, 1, 8, 1, 1, "").capacity == 85_362_475_008
    assert known_machine("h100").capacity == int(79.1 * 1024**3)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100 80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100 40gb"),
        ("NVIDIA GB200", "gb200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA A100", None),  # of 40 or of 80 GB
        ("NVIDIA H100 PCIe", None),  # a peak, and another board
        ("Tesla T4", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("abacus", None),
    ],
)
def test_a_device_by_its_drivers_name(driver, name):
    found = find_machine(driver)
    assert (found and found.name) == name
    if name is None:
        with pytest.raises(ConfigError) as error:
            known_machine(driver)
        names = ", ".join(machine.name for machine in MACHINES)
        assert str(error.value) == f"device {driver!r}: its memory and its links are unknown; choose from {names}"


def test_a_board_with_a_peak_may_have_no_machine():
    assert find_peak("NVIDIA H100 PCIe") is not None
