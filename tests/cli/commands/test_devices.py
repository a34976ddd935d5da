"""``bridge devices``: the peak table, whole or by a name."""

from __future__ import annotations

import json

from bridge.cli.main import main
from bridge.hardware import PEAKS, peak_bandwidth, peak_flops


def test_every_row_with_its_source(capsys):
    assert main(["devices", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [peak.words for peak in PEAKS]
    for row in rows:
        assert row["peak_flops"] == {name: peak_flops(row["name"], name) for name in row["peak_flops"]}
        assert row["bandwidth"] == peak_bandwidth(row["name"])
        assert row["source"]


def test_the_row_that_a_name_means(capsys):
    assert main(["devices", "NVIDIA H100 80GB HBM3"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[3].split()[:5] == ["h100", "1978.9", "989.4", "989.4", "3.35"]
    assert "architecture white paper" in out
    assert "a100" not in out


def test_an_unknown_name(capsys):
    assert main(["devices", "h10"]) == 2
    assert "device 'h10' is unknown or ambiguous (did you mean h100?)" in capsys.readouterr().err
