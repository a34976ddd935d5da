"""``bridge devices``: the peaks that utilization is compared with, and where they come from."""

from __future__ import annotations

import argparse
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.hardware import NUMBER_FORMATS, PEAKS, DatasheetPeak

_EXAMPLES = {
    "all devices": "bridge devices",
    "one device, by the name that torch reports": "bridge devices 'NVIDIA H100 80GB HBM3'",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "devices",
        run,
        "List the devices with a known peak: dense matmul rates by number format, memory bandwidth, and the source document. "
        "With a name, as torch or nvidia-smi reports it, print only its row.",
        _EXAMPLES,
    )
    parser.add_argument("name", nargs="?", help="a device, for example 'NVIDIA H100 80GB HBM3'")


def run(arguments: argparse.Namespace) -> int:
    peaks = PEAKS if arguments.name is None else (options.known_device(arguments.name),)
    if arguments.json:
        print_json([_as_json(peak) for peak in peaks])
        return 0
    formats = [name for name in NUMBER_FORMATS if any(name in peak.tflops for peak in peaks)]
    table = make_table(("device",), (*formats, "TB/s"), ("source",))
    for peak in peaks:
        rates = (f"{peak.tflops[name]:g}" if name in peak.tflops else "" for name in formats)
        table.add_row(peak.words, *rates, "" if peak.bandwidth is None else f"{peak.bandwidth:g}", peak.source)
    console = Output()
    console.print("Dense peaks in TFLOP/s and memory bandwidth in TB/s, per device as torch sees it.\n")
    console.show(table)
    return 0


def _as_json(peak: DatasheetPeak) -> dict[str, Any]:
    """FLOP/s and byte/s."""
    return {
        "name": peak.words,
        "peak_flops": {name: rate * 1e12 for name, rate in peak.tflops.items()},
        "bandwidth": None if peak.bandwidth is None else peak.bandwidth * 1e12,
        "source": peak.source,
    }
