"""What published runs reach: one row a kind, and no number where nothing is published."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest

from bridge.planning.training_run import Range
from bridge.planning.typical import TYPICAL, typical_mfu


def test_one_row_a_kind_with_its_source():
    kinds = [(row.experts, row.number_format) for row in TYPICAL]
    assert sorted(kinds) == sorted(product((False, True), ("bf16", "fp8", "fp4")))
    for row in TYPICAL:
        assert 0 < row.mfu.low < row.mfu.high < 1
        assert "arXiv:" in row.source or "releases" in row.source


def test_llama_3s_own_table():
    """arXiv:2407.21783, table 4: 43, 41 and 38 percent."""
    found = typical_mfu(False, "bf16")
    assert found.mfu == Range(Fraction(38, 100), Fraction(43, 100))
    assert "arXiv:2407.21783" in found.source


@pytest.mark.parametrize("experts", [False, True])
def test_fp16_runs_at_the_rate_of_bf16_and_others_are_unknown(experts):
    assert typical_mfu(experts, "fp16") is typical_mfu(experts, "bf16")
    assert typical_mfu(experts, "bf16").experts is experts
    assert typical_mfu(experts, "fp8").number_format == "fp8"
    for unknown in ("fp32", "tf32", "unknown", ""):
        assert typical_mfu(experts, unknown) is None
