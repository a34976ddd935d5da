"""The peak of one device, and where that number comes from.

On an accelerator it is the configuration's ``hardware.peak_flops``, else the datasheet's; an unknown device has no peak.  A CPU
has no useful datasheet rate, so its peak is measured: the fastest of a few matmuls.  Other load can only make a measurement
slower, so a file keeps the fastest one of this machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.config.caches import cache_folder, replace_json
from bridge.hardware import NUMBER_FORMATS, find_peak, mixed_peak, peak_flops


@dataclass(frozen=True)
class Peak:
    """The highest rate that one device can reach.

    Attributes:
        flops: dense FLOP/s for every number format; None if unknown.
        by_format: dense FLOP/s by number format, instead of ``flops``, if a run has several.
    """

    flops: float | None = None
    by_format: Mapping[str, float | None] = field(default_factory=dict)

    def of(self, formats: Mapping[str, int]) -> float | None:
        """The peak in FLOP/s for work in these number formats; None if unknown."""
        return mixed_peak(formats, self.by_format) if self.by_format else self.flops


UNKNOWN = Peak()


@dataclass(frozen=True)
class DevicePeak:
    """Peak of one device.

    Attributes:
        device: name of the device.
        number_format: format of the matmuls, one of ``hardware.NUMBER_FORMATS``, or ``unknown``.
        flops: dense FLOP/s; None if unknown.
        source: a description of where ``flops`` comes from.
    """

    device: str
    number_format: str
    flops: float | None
    source: str


def device_peak(
    number_format: str, *, device_name: str | None = None, configured: float | None = None, device: Any = None
) -> DevicePeak:
    """The peak to compare a run with.

    Args:
        number_format: format of the matmuls.
        device_name: ``hardware.device_name``; by default the name that the device reports.
        configured: ``hardware.peak_flops``, which takes precedence.
        device: the torch device that computes; by default CUDA if available.
    """
    import torch

    device = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device.type == "cpu"
    name = device_name or (cpu_name() if on_cpu else torch.cuda.get_device_name(device))
    if configured is not None:
        return DevicePeak(name, number_format, float(configured), "hardware.peak_flops")
    if number_format not in NUMBER_FORMATS:
        return DevicePeak(
            name, number_format, None, "unknown: the number formats of the run are unknown; set hardware.peak_flops"
        )
    if on_cpu and device_name is None and number_format in _CPU_TYPES:
        return DevicePeak(
            name, number_format, *fastest(name, number_format, measure_matmul(getattr(torch, _CPU_TYPES[number_format])))
        )
    entry = find_peak(name)
    flops = peak_flops(name, number_format)
    if flops is not None and entry is not None:
        return DevicePeak(name, number_format, flops, f"{entry.source}, dense {number_format}")
    reason = "has no rate for this number format" if entry else "is not in the table"
    return DevicePeak(name, number_format, None, f"unknown: {name!r} {reason}; set hardware.peak_flops")


#: Number formats in which a CPU multiplies.
_CPU_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def measure_matmul(dtype: Any, *, size: int = 768, seconds: float = 0.25) -> tuple[float, str]:
    """FLOP/s of the fastest of a few square matmuls on the CPU, with the threads torch has, and how it was measured."""
    import torch

    rate, runs = fastest_matmul(size, size, size, dtype, torch.device("cpu"), seconds)
    name = str(dtype).removeprefix("torch.")
    return rate, f"measured: fastest of {runs} {name} matmuls {size}x{size}x{size}, {torch.get_num_threads()} thread(s)"


def fastest_matmul(m: int, k: int, n: int, dtype: Any, device: Any, seconds: float) -> tuple[float, int]:
    """FLOP/s of the fastest run of ``[m, k] x [k, n]``, and the number of runs: at least three, for at least ``seconds``."""
    import torch

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    a, b = (torch.ones(size, dtype=dtype, device=device) for size in ((m, k), (k, n)))
    out = torch.empty(m, n, dtype=dtype, device=device)
    best, runs, end = math.inf, 0, time.perf_counter() + seconds
    with torch.no_grad():
        while runs < 3 or time.perf_counter() < end:
            settle()
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            settle()
            best, runs = min(best, time.perf_counter() - start), runs + 1
    return 2 * m * k * n / best, runs


#: A measurement below this fraction of the fastest indicates other load.
_BUSY = 0.7


def fastest(name: str, number_format: str, now: tuple[float, str]) -> tuple[float, str]:
    """The larger of a measurement and the fastest recorded one for this processor, torch and number of threads.

    The records are in ``peaks.json`` of ``bridge.config.caches.cache_folder``; delete the file to start over.
    """
    import torch

    rate, source = now
    path = cache_folder() / "peaks.json"
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {number_format}"
    known = _read(path)
    kept = known.get(key)
    if not isinstance(kept, (int, float)) or isinstance(kept, bool) or not rate < kept < math.inf:
        _keep(path, {**known, key: rate})
        return now
    doubt = f"; the current measurement is {rate / kept:.0%} of it, so other load is running" if rate < _BUSY * kept else ""
    return float(kept), f"{source}; the fastest measurement on this machine{doubt}"


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(path: Path, known: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # without the file it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, known)


def cpu_name() -> str:
    """The processor's name as the operating system knows it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
