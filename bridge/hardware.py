"""Device name x number format -> dense peak FLOP/s, with the source of every number. Unknown stays unknown.

Three rules keep a wrong peak out:

1. Names are compared word by word, so an L40S does not match L4, a GH200 H200 or an A100 A10.
2. The entry with the most matching words wins (``H100 PCIe`` over ``H100``); a tie between different devices is unknown.
3. A part of a device (a MIG slice, a vGPU, a shared one) or a namesake (laptop, Ti, D) is unknown, not the whole device.

All rates are dense, at the clock of the datasheet: the figures "with sparsity" are twice these.  They are per device as
torch sees it, so an MI250X counts one of its two dies, and a TPU7x one of its two chiplets.  AWS's are of a whole chip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMBER_FORMATS = ("fp4", "fp8", "bf16", "fp16", "tf32", "fp32")


@dataclass(frozen=True)
class DatasheetPeak:
    """One row of a datasheet."""

    words: str
    """Words that a device's name must contain, in lower case."""
    tflops: Mapping[str, float]
    """Dense matmul rate in TFLOP/s by number format, FP32 accumulation."""
    bandwidth: float | None
    """Memory bandwidth in TB/s; None if devices of this name differ."""
    source: str
    """The vendor's document."""
    also: tuple[str, ...] = ()
    """Other names of the same device, as ``words``."""

    def matches(self, words: set[str]) -> int:
        """How many words of a device's name match this row; 0 if it is another device."""
        names = (set(name.split()) for name in (self.words, *self.also))
        return max((len(name) for name in names if name <= words and not (words & _NAMESAKES) - name), default=0)


def _rates(bf16: float, fp8: float | None = None, fp4: float | None = None) -> dict[str, float]:
    """FP16 and BF16 run at one rate wherever both exist."""
    rates = {"bf16": bf16, "fp16": bf16, "fp8": fp8, "fp4": fp4}
    return {number_format: rate for number_format, rate in rates.items() if rate is not None}


_V100 = "NVIDIA V100 datasheet"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_A800 = "NVIDIA A800 Tensor Core GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet and architecture white paper"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet"
_H800 = "NVIDIA H800 datasheet"
_GH200 = "NVIDIA GH200 Grace Hopper Superchip datasheet"
_BLACKWELL = "NVIDIA Blackwell architecture technical brief"
_BLACKWELL_ULTRA = "NVIDIA Blackwell Ultra datasheet"
_RTX_PRO = "NVIDIA RTX Blackwell PRO GPU architecture white paper"
_TPU = "Google Cloud TPU documentation, system architecture of"
_TRAINIUM = "AWS Neuron documentation, one chip (torch counts its cores) of"

# An NVIDIA family's name alone means the SXM module: PCIe and NVL boards say so in the name they report.
PEAKS = (
    DatasheetPeak("v100", {"fp16": 125}, 0.9, _V100),
    DatasheetPeak("v100 pcie", {"fp16": 112}, 0.9, _V100),
    DatasheetPeak("t4", {"fp16": 65}, 0.32, "NVIDIA T4 datasheet"),
    DatasheetPeak("a100", _rates(312), None, _A100),
    DatasheetPeak("a100 40gb", _rates(312), 1.555, _A100),
    DatasheetPeak("a100 80gb", _rates(312), 2.039, _A100),
    DatasheetPeak("a100 80gb pcie", _rates(312), 1.935, _A100),
    DatasheetPeak("a800", _rates(312), None, _A800),
    DatasheetPeak("a800 40gb", _rates(312), 1.555, _A800),
    DatasheetPeak("a800 80gb", _rates(312), 2.039, _A800),
    DatasheetPeak("a800 80gb pcie", _rates(312), 1.935, _A800),
    DatasheetPeak("a10", _rates(125), 0.6, "NVIDIA A10 datasheet"),
    DatasheetPeak("a10g", _rates(70), 0.6, "NVIDIA A10G datasheet"),
    DatasheetPeak("a30", _rates(165), 0.933, "NVIDIA A30 datasheet"),
    DatasheetPeak("a40", _rates(149.7), 0.696, "NVIDIA A40 datasheet"),
    DatasheetPeak("a6000", _rates(154.8), 0.768, "NVIDIA RTX A6000 datasheet; Ampere GA102 white paper"),
    DatasheetPeak("l4", _rates(121, 242), 0.3, "NVIDIA L4 datasheet"),
    DatasheetPeak("l40", _rates(181, 362), 0.864, "NVIDIA L40 datasheet"),
    DatasheetPeak("l40s", _rates(362, 733), 0.864, "NVIDIA L40S datasheet"),
    DatasheetPeak("h100", _rates(989.4, 1978.9), 3.35, _H100),
    # 80 GB of HBM2e stand on the PCIe board only.
    DatasheetPeak("h100 pcie", _rates(756, 1513), 2.0, _H100, ("h100 80gb hbm2e",)),
    DatasheetPeak("h100 nvl", _rates(835, 1671), 3.9, "NVIDIA H100 NVL product brief"),
    DatasheetPeak("h200", _rates(989.4, 1978.9), 4.8, _H200),
    DatasheetPeak("h200 nvl", _rates(835, 1671), 4.8, _H200),
    DatasheetPeak("h800", _rates(989.4, 1978.9), 3.35, _H800),
    DatasheetPeak("h800 pcie", _rates(756, 1513), 2.0, _H800),
    DatasheetPeak("h20", _rates(148, 296), 4.0, "NVIDIA H20 datasheet"),
    DatasheetPeak("h20 3e", _rates(148, 296), 4.8, "NVIDIA H20-3e datasheet"),
    DatasheetPeak("gh200", _rates(989.4, 1978.9), 4.0, _GH200),
    DatasheetPeak("gh200 hbm3e", _rates(989.4, 1978.9), 4.9, _GH200),
    DatasheetPeak("b200", _rates(2250, 4500, 9000), 8.0, _BLACKWELL),
    DatasheetPeak("gb200", _rates(2500, 5000, 10000), 8.0, _BLACKWELL),
    DatasheetPeak("b300", _rates(2250, 4500, 13500), 8.0, _BLACKWELL_ULTRA),
    DatasheetPeak("gb300", _rates(2500, 5000, 15000), 8.0, _BLACKWELL_ULTRA),
    DatasheetPeak("rtx 3090", _rates(71), 0.936, "NVIDIA Ampere GA102 white paper"),
    DatasheetPeak("rtx 4090", _rates(165.2, 330.3), 1.008, "NVIDIA Ada white paper"),
    DatasheetPeak("rtx 5090", _rates(209.5, 419), 1.792, "NVIDIA RTX Blackwell white paper"),
    DatasheetPeak("rtx 6000 ada", _rates(364.2, 728.5), 0.96, "NVIDIA RTX 6000 Ada datasheet; Ada white paper"),
    DatasheetPeak("rtx pro 6000 workstation", _rates(503.8, 1007.6, 2015.2), 1.792, _RTX_PRO),
    DatasheetPeak("rtx pro 6000 max q workstation", _rates(438.9, 877.8, 1755.6), 1.792, _RTX_PRO, ("rtx pro 6000 max q",)),
    DatasheetPeak("mi210", _rates(181), 1.6, "AMD Instinct MI210 data sheet"),
    DatasheetPeak("mi250x", _rates(191.5), 1.6, "AMD Instinct MI250X data sheet, one of two dies"),
    # ROCm prints one name for a part that is sold as either: the figure is the smaller one's.
    DatasheetPeak("mi250", _rates(181), 1.6, "AMD Instinct MI250 data sheet, one of two dies", ("mi250x mi250",)),
    DatasheetPeak("mi300a", _rates(980.6, 1961.2), 5.3, "AMD Instinct MI300A data sheet"),
    DatasheetPeak("mi300x", _rates(1307.4, 2614.9), 5.3, "AMD Instinct MI300X data sheet"),
    DatasheetPeak("mi325x", _rates(1307.4, 2614.9), 6.0, "AMD Instinct MI325X data sheet"),
    DatasheetPeak("mi350x", _rates(2300, 4600, 9200), 8.0, "AMD Instinct MI350X data sheet"),
    DatasheetPeak("mi355x", _rates(2516.6, 5033, 10066), 8.0, "AMD Instinct MI355X data sheet"),
    DatasheetPeak("tpu v4", {"bf16": 275}, 1.2, f"{_TPU} v4", ("tpuv4",)),
    DatasheetPeak("tpu v5e", {"bf16": 197}, 0.819, f"{_TPU} v5e", ("tpu v5 lite",)),
    DatasheetPeak("tpu v5p", {"bf16": 459}, 2.765, f"{_TPU} v5p", ("tpu v5",)),
    DatasheetPeak("tpu v6e", {"bf16": 918}, 1.638, f"{_TPU} v6e", ("tpu v6 lite",)),
    DatasheetPeak("tpu7x", {"bf16": 1153.5, "fp8": 2307}, 3.69, f"{_TPU} TPU7x, one of two chiplets", ("tpu v7x", "tpu 7x")),
    DatasheetPeak("trainium", _rates(190, 190), 0.82, f"{_TRAINIUM} Trainium", ("trn1",)),
    DatasheetPeak("trainium2", _rates(667, 1299), 2.9, f"{_TRAINIUM} Trainium2", ("trn2",)),
    DatasheetPeak("trainium3", _rates(671, 2517), 4.9, f"{_TRAINIUM} Trainium3", ("trn3",)),
    DatasheetPeak("gaudi2", {"bf16": 432, "fp8": 865}, 2.46, "Intel Gaudi 2 white paper", ("gaudi 2",)),
    DatasheetPeak("gaudi3", {"bf16": 1835, "fp8": 1835}, 3.7, "Intel Gaudi 3 white paper", ("gaudi 3",)),
)

# Words that turn a device's name into that of another, smaller or sliced one, unless they are among its own; and vGPU profiles
# such as 40c or 48q.  Parts with 64 GB are made for one customer (A100 with 124 processors instead of 108).
_NAMESAKES = frozenset(
    {"mig", "shared", "laptop", "mobile", "max", "ti", "super", "d", "fhhl", "3e", "mi250", "lite", "64gb", "pro"}
)
_VGPU_PROFILE = re.compile(r"\d+[abcq]")


def find_peak(device_name: str) -> DatasheetPeak | None:
    """The row for a device as torch, nvidia-smi, ROCm or a Kubernetes label names it; None if unknown or ambiguous."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if any(map(_VGPU_PROFILE.fullmatch, words)):
        return None
    matches = [(peak.matches(words), peak) for peak in PEAKS]
    most = max(number for number, _ in matches)
    best = [peak for number, peak in matches if number == most]
    return best[0] if most and len(best) == 1 else None


def peak_flops(device_name: str, number_format: str = "bf16") -> float | None:
    """Dense peak of one device in FLOP/s; None if it is unknown or the device lacks the number format.

    Args:
        device_name: as torch reports it, for example ``NVIDIA H100 80GB HBM3``.
        number_format: one of :data:`NUMBER_FORMATS`.
    """
    if number_format not in NUMBER_FORMATS:
        raise ValueError(f"number_format={number_format!r} is unknown; use one of {', '.join(NUMBER_FORMATS)}")
    peak = find_peak(device_name)
    tflops = peak.tflops.get(number_format) if peak else None
    return None if tflops is None else tflops * 1e12


def mixed_peak(flops: Mapping[str, Any], peaks: Mapping[str, float | None]) -> float | None:
    """The highest rate of a device on work in several number formats: the work over the sum of FLOPs / peak.

    Args:
        flops: work by number format, in any unit.
        peaks: peaks by number format in FLOP/s.

    Returns:
        The rate in FLOP/s, which is the peak if there is only one format; None if there is no work or a peak is missing.
    """
    used = {name: amount for name, amount in flops.items() if amount}
    if not used or not all(peaks.get(name) for name in used):
        return None
    if len(used) == 1:
        return peaks[next(iter(used))]
    return float(sum(used.values())) / sum(float(amount) / float(peaks[name] or 0) for name, amount in used.items())


def peak_bandwidth(device_name: str) -> float | None:
    """Memory bandwidth of one device in byte/s; None if unknown."""
    peak = find_peak(device_name)
    return None if peak is None or peak.bandwidth is None else peak.bandwidth * 1e12


def compute_mfu(flops: float, duration_s: float, gpu_name: str, num_gpus: int = 1) -> float:
    """Model FLOPs utilization in percent of the BF16 peak (FP16 on devices without BF16).

    Args:
        flops: work done by all devices together, FLOP.
        duration_s: seconds it took.
        gpu_name: device name, see :func:`peak_flops`.
        num_gpus: devices that shared the work.

    Returns:
        Percent; 0.0 for an unknown device or a duration that is not positive.

    Raises:
        ValueError: num_gpus is not positive.
    """
    return _utilisation(flops, duration_s, peak_flops(gpu_name, "bf16") or peak_flops(gpu_name, "fp16"), num_gpus)


def compute_mbu(num_bytes: float, duration_s: float, gpu_name: str, num_gpus: int = 1) -> float:
    """Memory bandwidth utilization in percent of the peak.

    Args:
        num_bytes: read and written by all devices together.
        duration_s: seconds it took.
        gpu_name: device name, see :func:`peak_bandwidth`.
        num_gpus: devices that shared the work.

    Returns:
        Percent; 0.0 for an unknown device or a duration that is not positive.

    Raises:
        ValueError: num_gpus is not positive.
    """
    return _utilisation(num_bytes, duration_s, peak_bandwidth(gpu_name), num_gpus)


def _utilisation(work: float, duration_s: float, peak: float | None, num_gpus: int) -> float:
    """``work`` in percent of what ``num_gpus`` devices do at their peak in that time; 0.0 where there is no such number."""
    if num_gpus <= 0:
        raise ValueError(f"num_gpus={num_gpus} must be positive; give the number of devices that shared the work")
    if peak is None or duration_s <= 0:
        return 0.0
    return 100.0 * work / (duration_s * peak * num_gpus)
