"""How long a step takes at least, and about: every part by hand on machines of round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.buffers import Optimizer
from bridge.planning.communication import Traffic, communication
from bridge.planning.layouts import Layout
from bridge.planning.machines import Machine, known_machine
from bridge.planning.memory import memory
from bridge.planning.step_time import bandwidth, peak_of, step_time
from bridge.planning.training_run import pipeline_bound

H100, OPTIMIZER = known_machine("h100"), Optimizer()
PEAK, BYTES_PER_SECOND = 989.4e12, 3.35e12
LENGTH = 8192
LLAMA = compile_plan(load_recipe("llama3-8b", validate=False))
#: Links of 100 GB/s in domains of 8, a network of 10 GB/s.
ROUND = Machine("h100", 79.1, 100, 8, 10, 700, "")


def timed(plan=LLAMA, layout=Layout(), optimizer=OPTIMIZER, machine=H100, length=LENGTH, **options):  # noqa: B008
    needs = memory(plan, layout, optimizer, sequence_length=length)
    return step_time(plan, layout, optimizer, machine, needs, sequence_length=length, **options)


def test_one_device_multiplies_and_then_optimizes():
    found = timed(layout=Layout(global_batch_size=4))
    ideal = 4 * 421645529382912 / PEAK
    # Weights and gradients are read, states read and written: 2 + 4 + 2 x 12 bytes of each parameter.
    optimizing = 30 * 8_030_261_248 / BYTES_PER_SECOND
    assert (found.bound, found.binds, found.traffic) == (pytest.approx(ideal), "compute", ())
    assert found.parts == pytest.approx({"compute": ideal / 0.6, "bubble": 0, "optimizer": optimizing})
    assert found.estimate == pytest.approx(ideal / 0.6 + optimizing)


def test_a_short_step_is_bound_by_the_memorys_bandwidth():
    found = timed(length=16)
    assert found.binds == "memory bandwidth"
    assert found.bound == pytest.approx(30 * 8_030_261_248 / BYTES_PER_SECOND)


@pytest.mark.parametrize(
    ("device", "number_format", "peak", "reached"),
    [("h100", "bf16", PEAK, 0.6), ("h100", "fp16", PEAK, 0.6), ("h100", "fp8", 1978.9e12, 0.53), ("gb200", "fp4", 1e16, 0.3)],
)
def test_a_format_has_its_peak_and_its_best_published_fraction(device, number_format, peak, reached):
    found = timed(layout=Layout(global_batch_size=8), machine=known_machine(device), number_format=number_format)
    assert found.bound == pytest.approx(8 * 421645529382912 / peak)
    assert found.parts["compute"] == pytest.approx(8 * 421645529382912 / peak / reached)


def test_experts_reach_half_and_recomputation_is_time():
    moe = compile_plan(load_recipe("qwen3-30b-a3b", validate=False))
    flops = moe.flops([4096])
    assert timed(moe, length=4096, layout=Layout(global_batch_size=64)).parts["compute"] == pytest.approx(64 * flops / PEAK / 0.3)
    options = ["model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"]
    again = compile_plan(load_recipe("llama3-8b", options, validate=False))
    assert timed(again).bound == pytest.approx(again.flops([LENGTH], passes="hardware") / PEAK)
    assert timed(again).bound > timed().bound


def test_a_pipelines_bubble():
    """Two stages of which the last has the output layer too; four micro-batches of one sequence."""
    layout = Layout(devices=2, pipeline=PipelineLayout(pipeline_model_parallel_size=2), global_batch_size=4)
    output = LLAMA.breakdown([LENGTH])["output_layer"]
    half = (421645529382912 - output) // 2
    found = timed(layout=layout)
    # The last one begins when the first has done one micro-batch's share of its work: 4 x last + first.
    longest = (4 * (half + output) + half) / PEAK
    assert found.bound == pytest.approx(longest)
    busy = 4 * (2 * half + output) / 2 / PEAK
    assert found.parts["compute"] == pytest.approx(busy / 0.6)
    assert found.parts["bubble"] == pytest.approx((longest - busy) / 0.6)
    assert pipeline_bound([4 * half, 4 * (half + output)], 4).efficiency == pytest.approx(busy / longest)
    assert found.parts["pipeline"] == pytest.approx(0.5 * spent(layout, "pipeline") * longest / busy)
    assert {one.dimension for one in found.traffic} == {"pipeline"}


def spent(layout: Layout, dimension: str, optimizer: Optimizer = OPTIMIZER, machine: Machine = H100) -> float:
    """Seconds that the busiest stage's traffic takes on links of one domain."""
    stage = layout.stages - 1
    found = communication(LLAMA, layout, optimizer, sequence_length=LENGTH, stage=stage)
    return sum(one.moved for one in found if one.dimension == dimension) / (machine.link * 1e9)


def test_half_of_what_tensor_parallel_ranks_send_is_hidden():
    layout = Layout(devices=2, tensor_model_parallel_size=2, sequence_parallel=True)
    found = timed(layout=layout)
    assert found.parts["tensor"] == pytest.approx(0.5 * spent(layout, "tensor"))
    assert found.parts["compute"] == pytest.approx(421645529382912 / 2 / PEAK / 0.6)
    slow = timed(layout=layout, machine=replace(H100, link=0.5))
    assert (slow.binds, slow.bound) == ("tensor", pytest.approx(2 * slow.parts["tensor"]))


def test_a_ring_of_keys_is_mostly_hidden():
    layout = Layout(devices=2, context_parallel_size=2)
    assert timed(layout=layout).parts["context"] == pytest.approx(0.1 * spent(layout, "context"))


@pytest.mark.parametrize(
    ("overlap", "hidden"), [((False, False), 0), ((True, False), 2 / 3), ((False, True), 1 / 3), ((True, True), 1)]
)
def test_gradients_hide_in_the_last_backward_pass_and_weights_in_the_first_forward_pass(overlap, hidden):
    layout = Layout(devices=8, global_batch_size=8)
    reduce, gather = overlap
    optimizer = Optimizer(overlap_grad_reduce=reduce, overlap_param_gather=gather)
    machine = replace(H100, link=10)
    sent = spent(layout, "data", optimizer, machine)
    pass_s = 421645529382912 / PEAK / 0.6
    found = timed(layout=layout, optimizer=optimizer, machine=machine)
    assert found.parts["data"] == pytest.approx(sent - hidden * pass_s)
    assert sent > pass_s  # else nothing were left of it
    fast = timed(layout=layout, optimizer=optimizer)
    assert fast.parts["data"] == pytest.approx(max(spent(layout, "data", optimizer) - hidden * pass_s, 0))


def test_parts_add_up():
    layout = Layout(devices=16, tensor_model_parallel_size=2, sequence_parallel=True, context_parallel_size=2,
                    pipeline=PipelineLayout(pipeline_model_parallel_size=2), global_batch_size=16)  # fmt: skip
    found = timed(layout=layout)
    assert sum(found.parts.values()) == pytest.approx(found.estimate)
    assert found.parts.keys() == {"compute", "bubble", "optimizer", "tensor", "context", "pipeline", "data"}


# ---- peaks and bandwidths --------------------------------------------------------------------------------------------


def test_the_peak_of_a_batch():
    vector = LLAMA.measure([LENGTH])
    assert peak_of(LLAMA, vector, "h100") == peak_of(LLAMA, vector, "NVIDIA H100 80GB HBM3", "bf16") == PEAK
    assert peak_of(LLAMA, vector, "h100", "fp8") == 1978.9e12
    mixed = compile_plan({"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512, "bf16": True,
                          "fp8": "hybrid", "fp8_recipe": "tensorwise"})  # fmt: skip
    vector = mixed.measure([LENGTH])
    formats = mixed.evaluate_formats(vector)
    assert sorted(formats) == ["bf16", "fp8"]
    time = formats["bf16"] / PEAK + formats["fp8"] / 1978.9e12
    assert peak_of(mixed, vector, "h100") == pytest.approx(sum(formats.values()) / time)


@pytest.mark.parametrize(
    ("device", "number_format", "missing"), [("a100 80gb", "fp8", "fp8"), ("abacus", "", "bf16"), ("h100", "fp4", "fp4")]
)
def test_a_device_without_the_format(device, number_format, missing):
    with pytest.raises(ConfigError) as error:
        peak_of(LLAMA, LLAMA.measure([LENGTH]), device, number_format)
    assert str(error.value) == f"device {device!r} has no {missing} peak; choose another device or number format"


@pytest.mark.parametrize(
    ("dimension", "options", "gigabytes"),
    [
        ("tensor", {"devices": 16, "tensor_model_parallel_size": 8}, 100),
        ("tensor", {"devices": 16, "tensor_model_parallel_size": 16}, 10),
        ("context", {"devices": 16, "tensor_model_parallel_size": 4, "context_parallel_size": 2}, 100),
        ("context", {"devices": 16, "tensor_model_parallel_size": 4, "context_parallel_size": 4}, 10),
        ("expert", {"devices": 16, "tensor_model_parallel_size": 2, "expert_model_parallel_size": 4}, 100),
        ("expert", {"devices": 16, "tensor_model_parallel_size": 2, "expert_model_parallel_size": 8}, 10),
        ("expert", {"devices": 16, "tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1,
                    "expert_model_parallel_size": 8}, 100),
        ("data", {"devices": 8}, 100),
        ("data", {"devices": 16}, 10),
        ("data", {"devices": 16, "pipeline": PipelineLayout(pipeline_model_parallel_size=2)}, 100),
        ("pipeline", {"devices": 8, "pipeline": PipelineLayout(pipeline_model_parallel_size=2)}, 100),
        ("pipeline", {"devices": 16, "pipeline": PipelineLayout(pipeline_model_parallel_size=2)}, 10),
    ],
)  # fmt: skip
def test_links_inside_a_domain_and_the_network_beyond(dimension, options, gigabytes):
    assert bandwidth(Traffic(dimension, "all_gather", 2, 1), Layout(**options), ROUND) == gigabytes * 1e9


@pytest.mark.parametrize(("experts", "gigabytes"), [(8, 100), (16, 20), (64, 10 / (1 - 8 / 64))])
def test_of_what_all_send_to_all_a_domains_own_part_stays_on_its_links(experts, gigabytes):
    layout = Layout(devices=64, expert_model_parallel_size=experts)
    assert bandwidth(Traffic("expert", "all_to_all", experts, 1), layout, ROUND) == pytest.approx(gigabytes * 1e9)
    slow = replace(ROUND, link=5)  # the part inside is the longer one: 8 of 16
    if experts == 16:
        assert bandwidth(Traffic("expert", "all_to_all", 16, 1), layout, slow) == pytest.approx(10e9)
