"""Shapes of a model's matmuls by hand, and what is made of their rates."""

from __future__ import annotations

import json

import pytest
import torch

from bridge.cli.main import main
from bridge.flops import compile_plan
from bridge.metrics import peak
from bridge.metrics.achievable import Matmul, MeasuredMatmul, matmuls, measure, reached

DENSE = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "gated_linear_unit": True,
    "vocab_size": 256,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 32,
}


def test_shapes_are_cut_as_megatron_core_cuts_them():
    """Two tensor ranks, 128 tokens: QKV 64 -> (4 + 2 + 2) 16 / 2, its output 64 / 2 -> 64, the gated MLP 64 -> 2 96 / 2."""
    found = {one.name: one for one in matmuls(compile_plan(DENSE, "exact"), 128, tensor=2)}
    sizes = {name: (one.m, one.k, one.n) for name, one in found.items()}
    assert sizes["linear_qkv forward"] == (128, 64, 64)
    assert sizes["linear_qkv dgrad"] == (128, 64, 64)
    assert sizes["linear_qkv wgrad"] == (64, 128, 64)
    assert sizes["linear_proj forward"] == (128, 32, 64)
    assert sizes["linear_fc1 forward"] == (128, 64, 96)
    assert sizes["linear_fc2 forward"] == (128, 48, 64)
    assert sizes["linear_fc2 wgrad"] == (48, 128, 64)
    assert sizes["output_layer forward"] == (128, 64, 128)
    for one in found.values():
        layers = 1 if one.name.startswith("output") else 2
        assert one.flops == 2 * one.m * one.k * one.n * layers, one.name


def test_experts_are_filled_evenly():
    moe = {**DENSE, "num_moe_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 48}
    found = {one.name: one for one in matmuls(compile_plan(moe, "exact"), 128, experts=8)}
    assert (found["linear_fc1 forward"].m, found["linear_fc1 forward"].n) == (128 * 2 // 8, 96)
    assert found["router forward"].m == 128


def test_what_is_reached_is_work_over_time():
    """3 FLOPs at 1 a second and 1 at 1 a second in a half: 4 in 5 seconds."""
    rates = [MeasuredMatmul(Matmul("a", 1, 1, 1, 3.0), 1.0), MeasuredMatmul(Matmul("b", 1, 1, 1, 1.0), 0.5)]
    assert reached(rates) == 4 / 5


def test_equal_shapes_are_measured_once_and_a_rate_is_flops_over_seconds(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(peak.time, "perf_counter", lambda: float(next(ticks)))
    found = [Matmul(name, 4, 5, 6, 1.0) for name in "ab"]
    rates = measure(found, torch.float32, torch.device("cpu"), seconds=0)
    assert [one.rate for one in rates] == [2 * 4 * 5 * 6] * 2
    assert next(ticks) == 1 + 3 * 2 + 1  # the end is set, three runs of two looks each, and it is there


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("BRIDGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ["peak", "tiny", "--number-format", "fp32", "--seconds", "0.001", "model.num_layers=1"]
    assert main([*options, "--peak-flops", "1e15", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["achievable_fraction"] == pytest.approx(told["achievable_flops"] / 1e15)
    assert told["matmuls"][0]["flops"] >= told["matmuls"][-1]["flops"]
    assert main(options) == 0
    assert "MFU with these shapes" in capsys.readouterr().out
