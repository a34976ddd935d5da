"""The peak table against the vendors' figures, and the names that look like another device's."""

from __future__ import annotations

import pytest

from bridge.hardware import PEAKS, compute_mfu, find_peak, mixed_peak, peak_bandwidth, peak_flops

# Names as the driver reports them: dense TFLOP/s in BF16, FP8 and FP4, and TB/s.
DEVICES = {
    "NVIDIA A100-SXM4-40GB": (312, None, None, 1.555),
    "NVIDIA A100-PCIE-40GB": (312, None, None, 1.555),
    "NVIDIA A100-SXM4-80GB": (312, None, None, 2.039),
    "NVIDIA A100 80GB PCIe": (312, None, None, 1.935),
    "NVIDIA A10": (125, None, None, 0.6),
    "NVIDIA A10G": (70, None, None, 0.6),
    "NVIDIA A30": (165, None, None, 0.933),
    "NVIDIA A40": (149.7, None, None, 0.696),
    "NVIDIA RTX A6000": (154.8, None, None, 0.768),
    "NVIDIA L4": (121, 242, None, 0.3),
    "NVIDIA L40": (181, 362, None, 0.864),
    "NVIDIA L40S": (362, 733, None, 0.864),
    "NVIDIA H100 80GB HBM3": (989.4, 1978.9, None, 3.35),
    "NVIDIA H100 PCIe": (756, 1513, None, 2.0),
    "NVIDIA H100 80GB HBM2e": (756, 1513, None, 2.0),
    "NVIDIA H100 NVL": (835, 1671, None, 3.9),
    "NVIDIA H200": (989.4, 1978.9, None, 4.8),
    "NVIDIA H200 NVL": (835, 1671, None, 4.8),
    "NVIDIA H800": (989.4, 1978.9, None, 3.35),
    "NVIDIA H20": (148, 296, None, 4.0),
    "NVIDIA H20-3e": (148, 296, None, 4.8),
    "NVIDIA A800-SXM4-80GB": (312, None, None, 2.039),
    "NVIDIA A800 80GB PCIe": (312, None, None, 1.935),
    "NVIDIA GH200 480GB": (989.4, 1978.9, None, 4.0),
    "NVIDIA GH200 144G HBM3e": (989.4, 1978.9, None, 4.9),
    "NVIDIA B200": (2250, 4500, 9000, 8.0),
    "NVIDIA GB200": (2500, 5000, 10000, 8.0),
    "NVIDIA B300 SXM6 AC": (2250, 4500, 13500, 8.0),
    "NVIDIA GB300": (2500, 5000, 15000, 8.0),
    "NVIDIA GeForce RTX 3090": (71, None, None, 0.936),
    "NVIDIA GeForce RTX 4090": (165.2, 330.3, None, 1.008),
    "NVIDIA GeForce RTX 5090": (209.5, 419, None, 1.792),
    "NVIDIA RTX 6000 Ada Generation": (364.2, 728.5, None, 0.96),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (503.8, 1007.6, 2015.2, 1.792),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": (438.9, 877.8, 1755.6, 1.792),
    "AMD Instinct MI210": (181, None, None, 1.6),
    "AMD Instinct MI250X / MI250": (181, None, None, 1.6),
    "AMD Instinct MI300A": (980.6, 1961.2, None, 5.3),
    "AMD Instinct MI350X": (2300, 4600, 9200, 8.0),
    "Trainium": (190, 190, None, 0.82),
    "trn2": (667, 1299, None, 2.9),
    "Trainium3": (671, 2517, None, 4.9),
    "AMD Instinct MI250X": (191.5, None, None, 1.6),
    "AMD Instinct MI300X": (1307.4, 2614.9, None, 5.3),
    "AMD Instinct MI325X": (1307.4, 2614.9, None, 6.0),
    "AMD Instinct MI355X": (2516.6, 5033, 10066, 8.0),
}


@pytest.mark.parametrize("name", DEVICES)
def test_devices_by_the_name_they_report(name):
    *rates, bandwidth = DEVICES[name]
    for number_format, rate in zip(("bf16", "fp8", "fp4"), rates, strict=True):
        assert peak_flops(name, number_format) == (None if rate is None else rate * 1e12)
    assert peak_flops(name, "fp16") == peak_flops(name) == rates[0] * 1e12
    assert peak_bandwidth(name) == bandwidth * 1e12


@pytest.mark.parametrize(("name", "tflops"), [("Tesla V100-SXM2-32GB", 125), ("Tesla V100-PCIE-16GB", 112), ("Tesla T4", 65)])
def test_devices_without_bf16(name, tflops):
    assert peak_flops(name, "fp16") == tflops * 1e12
    assert peak_flops(name, "bf16") is None


@pytest.mark.parametrize(
    "name",
    [
        "Tesla P100-PCIE-16GB",
        "NVIDIA A100X",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-40C",
        "NVIDIA A40-48Q",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla V100S-PCIE-32GB",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA-H100-80GB-HBM3-SHARED",
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition MIG 1g.24gb",
        "NVIDIA RTX 5000 Ada Generation",
        "TPU v4 lite",
        "TPU v3",
        "Ascend910B2",
        "NVIDIA H100 and NVIDIA H200",
        "Intel(R) Xeon(R) Platinum 8480C",
        "cpu",
        "",
    ],
)
def test_unknown_stays_unknown(name):
    assert find_peak(name) is None
    assert peak_flops(name) is None
    assert peak_bandwidth(name) is None
    assert compute_mfu(1e15, 1.0, name) == 0.0


@pytest.mark.parametrize(
    ("name", "bf16", "fp8", "bandwidth"),
    [
        ("TPU v4", 275, None, 1.2),
        ("TPU v5 lite", 197, None, 0.819),
        ("TPU v5e", 197, None, 0.819),
        ("TPU v5", 459, None, 2.765),
        ("TPU v5p", 459, None, 2.765),
        ("TPU v6 lite", 918, None, 1.638),
        ("TPU7x", 1153.5, 2307, 3.69),
        ("GAUDI2", 432, 865, 2.46),
        ("Intel Gaudi 3", 1835, 1835, 3.7),
    ],
)
def test_devices_without_fp16(name, bf16, fp8, bandwidth):
    assert peak_flops(name) == bf16 * 1e12
    assert peak_flops(name, "fp8") == (None if fp8 is None else fp8 * 1e12)
    assert peak_flops(name, "fp16") is None
    assert peak_bandwidth(name) == bandwidth * 1e12


@pytest.mark.parametrize(
    ("label", "device"),
    [
        ("NVIDIA-H100-80GB-HBM3", "h100"),
        ("nvidia-h100-80gb", "h100"),
        ("NVIDIA-A100-SXM4-80GB", "a100 80gb"),
        ("nvidia-l4", "l4"),
        ("nvidia-h200-141gb", "h200"),
        ("AMD_Instinct_MI300X_OAM", "mi300x"),
        ("tpu-v5-lite-podslice", "tpu v5e"),
        ("tpu-v5p-slice", "tpu v5p"),
        ("tpu-v4-podslice", "tpu v4"),
    ],
)
def test_labels_of_kubernetes(label, device):
    assert find_peak(label).words == device


def test_every_row_is_found_by_its_own_words_and_has_a_source():
    for peak in PEAKS:
        assert find_peak(peak.words) is peak
        assert len(peak.source.split()) >= 3


def test_an_unknown_number_format_is_an_error():
    with pytest.raises(ValueError, match="number_format='int8' is unknown; use one of fp4, fp8, bf16"):
        peak_flops("NVIDIA H100 PCIe", "int8")


def test_mfu_in_percent():
    assert compute_mfu(989.4e12, 1.0, "NVIDIA H100 80GB HBM3") == 100.0
    assert round(compute_mfu(989e12, 1.0, "H100 SXM"), 1) == 100.0
    assert compute_mfu(989.4e12, 2.0, "H100", num_gpus=4) == 12.5
    assert compute_mfu(32.5e12, 1.0, "Tesla T4") == 50.0  # no BF16: held against FP16
    assert compute_mfu(1e12, 0.0, "H100") == compute_mfu(1e12, -1.0, "H100") == 0.0


@pytest.mark.parametrize("num_gpus", [0, -8])
def test_mfu_of_no_device_is_an_error(num_gpus):
    with pytest.raises(ValueError, match=f"num_gpus={num_gpus} must be positive"):
        compute_mfu(1e12, 1.0, "H100", num_gpus)


def test_the_peak_of_mixed_work_is_the_work_over_its_ideal_time():
    """6 / 2 + 2 / 1 = 5 s for 8."""
    assert mixed_peak({"fp8": 6, "bf16": 2}, {"fp8": 2.0, "bf16": 1.0}) == 1.6
    assert mixed_peak({"bf16": 7, "fp8": 0}, {"bf16": 0.3}) == 0.3
    assert mixed_peak({"fp8": 6, "unknown": 1}, {"fp8": 2.0}) is None
    assert mixed_peak({"fp8": 6}, {"fp8": None}) is None
    assert mixed_peak({"fp8": 0}, {"fp8": 2.0}) is None
    assert mixed_peak({}, {}) is None
