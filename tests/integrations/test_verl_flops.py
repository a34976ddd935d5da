"""The interface of verl's counter, with exact numbers behind it."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import tiny_llama

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.integrations.verl_flops import FlopsCounter


def test_flops_of_all_ranks_and_the_peak_of_one():
    config = tiny_llama.model().config
    lengths = [5, 17, 64]
    flops = compile_plan(from_huggingface(config), "exact").flops(lengths)
    achieved, peak = FlopsCounter(config, device_name="NVIDIA H100 80GB HBM3").estimate_flops(lengths, 0.5)
    assert achieved == flops / 0.5 / 1e12
    assert peak == 989.4
    assert FlopsCounter(config, peak=2e12).estimate_flops(lengths, delta_time=2.0, images_seqlens=None) == (flops / 2e12, 2.0)


def test_an_unknown_device_has_no_utilisation(monkeypatch):
    monkeypatch.setattr("bridge.integrations.verl_flops._gpu", lambda: None)
    config = tiny_llama.model().config
    achieved, peak = FlopsCounter(config).estimate_flops([8], 1.0)
    assert achieved == compile_plan(from_huggingface(config), "exact").flops([8]) / 1e12
    assert achieved / peak == 0
