"""The products of an optimizer: in HFU always, in MFU where it is asked for, in steps that changed weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.flops import compile_plan
from bridge.metrics.instruments import Instruments
from bridge.metrics.meter import Meter
from bridge.metrics.optimizer import OptimizerFlops, OptimizerWork
from bridge.metrics.peak import Peak
from bridge.metrics.throughput import Interval, Work, throughput

WORK = Work(steps=1, flops=600, hardware_flops=800, tokens=1, formats={"bf16": 600}, hardware_formats={"bf16": 800})
INTERVAL = Interval(work=WORK, timed=WORK, seconds=2.0, world_size=2, total_flops=1, total_tokens=1, peak=Peak(1000.0))


def rates(measured, **fields):
    found = throughput(replace(INTERVAL, measured={"optimizer": measured}, **fields))
    return {name: found.get(f"throughput/{name}") for name in ("mfu", "hfu", "optimizer_flops")}


def test_by_hand():
    assert rates(OptimizerFlops({"bf16": 200})) == {"mfu": 0.15, "hfu": 0.25, "optimizer_flops": 200}
    assert rates(OptimizerFlops({"bf16": 200}, in_mfu=True)) == {"mfu": 0.2, "hfu": 0.25, "optimizer_flops": 200}


def test_products_in_a_format_without_a_peak_leave_no_hfu():
    assert rates(OptimizerFlops({"bf16": 0, "tf32": 200})) == {"mfu": 0.15, "hfu": None, "optimizer_flops": 200}
    assert rates(OptimizerFlops({"fp32": 200}), timed=replace(WORK, hardware_formats={"fp32": 800}))["hfu"] == 0.25
    peaks = Peak(1000.0, {"bf16": 1000.0, "tf32": 500.0})
    # 800 at 1000 and 200 at 500 take 1.2 s of a device; two had 2 s.
    assert rates(OptimizerFlops({"tf32": 200}), peak=peaks)["hfu"] == pytest.approx(1.2 / 4)


def test_unknown_stays_unknown():
    assert rates(OptimizerFlops({"bf16": 200}), peak=Peak())["hfu"] is None
    assert rates(OptimizerFlops({"bf16": 200}), timed=replace(WORK, hardware_flops=None))["hfu"] is None


def test_skipped_steps_have_none():
    plan = compile_plan({"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 16})
    meter = Meter(plan, instruments=Instruments([OptimizerWork({"bf16": 10})]), peak=Peak(1.0))
    for skipped in (False, False, True, False):
        meter.end_step(skipped=skipped)
    meter.launch(4)
    interval = meter.poll(wait=True).interval
    assert throughput(interval)["throughput/optimizer_flops"] == 20  # the first step has no time
