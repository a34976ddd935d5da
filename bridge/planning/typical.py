"""What MFU published runs reach: a range for each kind of model and number format, with its source."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from bridge.planning.training_run import Range

_TABLES = "NVIDIA's tables for Megatron-Bridge, releases 25.11 to 26.08"


@dataclass(frozen=True)
class Typical:
    """What published runs of one kind reach.

    Attributes:
        experts: whether the models have experts.
        number_format: the format of the matmuls.
        mfu: from the slowest to the fastest published run.
        source: where it is published.
    """

    experts: bool
    number_format: str
    mfu: Range
    source: str


def _percent(low: int, high: int) -> Range:
    return Range(Fraction(low, 100), Fraction(high, 100))


TYPICAL = (
    Typical(False, "bf16", _percent(38, 43), "Llama 3 405B on 8,192 and 16,384 H100, arXiv:2407.21783, table 4"),
    Typical(False, "fp8", _percent(28, 53), f"Llama 3 8B, 70B and 405B on H100 to GB300, {_TABLES}"),
    Typical(False, "fp4", _percent(20, 30), f"Llama 3 70B and 405B on GB200 and GB300, {_TABLES}"),
    Typical(True, "bf16", _percent(10, 38), f"GPT-OSS 120B and DeepSeek-V3 on H100 to GB300, {_TABLES}"),
    Typical(True, "fp8", _percent(5, 33), f"Qwen3, GPT-OSS, Nemotron 3 and DeepSeek-V3 on H100 to GB300, {_TABLES}"),
    Typical(True, "fp4", _percent(5, 6), f"Nemotron 3 Super on B200 to GB300, {_TABLES}"),
)


def typical_mfu(experts: bool, number_format: str) -> Typical | None:
    """The row of a kind of model; None where nothing is published here. FP16 runs at the rate of BF16."""
    name = "bf16" if number_format == "fp16" else number_format
    return next((row for row in TYPICAL if (row.experts, row.number_format) == (experts, name)), None)
