"""Regions of traces made by hand, and what becomes of them beside FLOPs."""

from __future__ import annotations

import pytest

from bridge.metrics.profiled import PREFIX, Region, regions, rows, with_flops

FC = "decoder.layers.0.mlp.linear_fc1"
BACKWARD = "autograd::engine::evaluate_function: "


def event(name: str, start: float, end: float, number: int | None = None, **more) -> dict:
    args = {} if number is None else {"Sequence number": number}
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": args, **more}


def ranged(name: str, start: float, end: float, **more) -> dict:
    return event(PREFIX + name, start, end, cat="user_annotation", **more)


STEP = [
    ranged("step", 0, 100),
    ranged("forward-compute", 5, 45),
    ranged(FC, 10, 30),
    event("aten::empty", 10.5, 10.7, 1),  # under no_grad: it has the number of the next that is differentiated
    event("aten::linear", 11, 29, 1),
    event("aten::mul", 31, 40, 2),
    ranged("backward-compute", 50, 90),
    event(BACKWARD + "MulBackward0", 51, 54, 2),
    event(BACKWARD + "AddmmBackward0", 60, 85, 1),
    event(BACKWARD + "torch::autograd::AccumulateGrad", 86, 88),  # of no operation
]


def found(events: list[dict]) -> dict[tuple[str, str], Region]:
    return {(one.name, one.way): one for one in regions(events)}


def test_each_microsecond_is_in_one_region():
    own = {key: one.own for key, one in found(STEP).items()}
    assert own == {
        ("step", "forward"): 20,
        ("forward-compute", "forward"): 20,
        (FC, "forward"): 20,
        ("backward-compute", "forward"): 12,
        ("forward-compute", "backward"): 3,
        (FC, "backward"): 25,
    }


def test_a_number_given_in_two_modules_belongs_to_the_later_one():
    events = [
        ranged("a", 0, 10),
        event("aten::detach", 1, 2, 7),
        ranged("b", 10, 20),
        event("aten::mm", 11, 12, 7),
        event(BACKWARD + "MmBackward0", 30, 34, 7),
    ]
    assert found(events)["b", "backward"].own == 4
    assert ("a", "backward") not in found(events)


def test_what_is_computed_again_in_a_backward_pass_is_told_apart():
    """Its operations have numbers of their own, which may be those of others in the forward pass."""
    events = [
        ranged("layer", 0, 20),
        ranged("layer.fc", 2, 8),
        event("CheckpointFunction", 1, 19, 1),
        ranged("output", 20, 30),
        event("aten::mm", 21, 29, 2),
        event(BACKWARD + "MmBackward0", 40, 45, 2),
        event(BACKWARD + "CheckpointFunctionBackward", 50, 100, 1),
        ranged("layer.fc", 52, 62),
        event("aten::mm", 53, 61, 2),
        event(BACKWARD + "MmBackward0", 70, 90, 2),
    ]
    own = {key: one.own for key, one in found(events).items()}
    assert own["output", "backward"] == 5
    assert own["layer.fc", "recompute"] == 10
    assert own["layer.fc", "backward"] == 20
    assert own["layer", "backward"] == 50 - 10 - 20


def test_a_kernel_belongs_to_what_launched_it():
    launch = event("cudaLaunchKernel", 12, 13, cat="cuda_runtime", args={"correlation": 5})
    kernel = event("gemm", 300, 340, cat="kernel", pid=0, tid=7, args={"correlation": 5})
    one = found([*STEP, launch, kernel])[FC, "forward"]
    assert one.kernels == [(300, 40)]
    table = {row.name: row.seconds for row in rows(regions([*STEP, launch, kernel]), {})}
    assert table["decoder.layers.*.mlp.linear_fc1"] == pytest.approx(40e-6)
    assert table["backward-compute"] == 0  # nothing of it ran on the device


def test_rows_by_hand():
    """Two layers of one micro-batch each; two ranks share their matmuls, at 4e9 FLOP/s each."""
    second = FC.replace("0", "1")
    events = [*STEP, ranged(second, 41, 44), event("aten::linear", 42, 43, 3)]
    work = {FC: [(80_000, 120_000)], second: [(8_000, 0)], "output_layer": [(16_000, 0)]}
    table = {row.name: row for row in rows(regions(events), work, ranks=2, peak=4e9)}
    row = table["decoder.layers.*.mlp.linear_fc1"]
    assert (row.forward_flops, row.backward_flops, row.flops) == (88_000, 120_000, 208_000)
    assert row.forward_seconds == pytest.approx(23e-6)
    assert row.backward_seconds == pytest.approx(25e-6)
    assert row.ideal_seconds == pytest.approx(26e-6)  # 104,000 / 4e9
    assert row.lost_seconds == pytest.approx(22e-6)
    assert row.rate == pytest.approx(104_000 / 48e-6)
    assert table["output_layer"].rate is None  # counted, and not seen
    assert table["forward-compute"].lost_seconds == pytest.approx(20e-6)  # 40 - 20 - 3 forward, 3 backward
    assert next(iter(table)) == "decoder.layers.*.mlp.linear_fc1"
    assert sum(row.seconds for row in table.values()) == pytest.approx(80e-6)


def test_flops_are_arguments_of_events():
    added = [one for one in with_flops(regions(STEP), {FC: [(80_000, 120_000)]}, ranks=2, peak=4e9) if one["ph"] == "X"]
    forward, backward = added
    assert (forward["name"], forward["tid"], forward["ts"], forward["dur"]) == (FC, "forward", 10, 20)
    assert forward["args"]["FLOPs"] == 40_000
    assert forward["args"]["TFLOP/s"] == pytest.approx(2e-3)
    assert forward["args"]["of the peak"] == pytest.approx(0.5)
    assert (backward["tid"], backward["ts"], backward["dur"], backward["args"]["FLOPs"]) == ("backward", 60, 25, 60_000)


def test_experts_of_one_name_are_one_micro_batch():
    events = [ranged("experts", start, start + 5) for start in (0, 10, 20, 30)]
    assert [one.call for one in regions(events, {"experts": 2})] == [0, 0, 1, 1]


# Mutants that nothing tells apart: types of ``ProfiledRow``, which nobody evaluates.
