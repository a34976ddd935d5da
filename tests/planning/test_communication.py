"""What crosses a link, by hand; ``test_built.py`` holds the bytes of collectives against real steps."""

from __future__ import annotations

import pytest

from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.buffers import Optimizer
from bridge.planning.communication import Traffic, communication
from bridge.planning.layouts import Layout


def by_name(found: list[Traffic]) -> dict[str, int]:
    return {f"{one.dimension}/{one.operation}": one.bytes for one in found}


def test_what_crosses_a_link() -> None:
    """A ring of four sends three quarters of a buffer to gather or to scatter it, and both to reduce it everywhere."""
    assert Traffic("data", "all_gather", 4, 1000).moved == 750
    assert Traffic("data", "all_reduce", 4, 1000).moved == 1500
    assert Traffic("pipeline", "send", 4, 1000).moved == 1000
    assert Traffic("pipeline", "recv", 4, 1000).moved == 0


def test_llama3_8b() -> None:
    """bf16, TP 2 with SP, 4 micro-batches of 8,192 tokens: 6 gathers and 4 scatters a layer, 3 and 2 outside."""
    plan = compile_plan(load_recipe("llama3-8b", validate=False))
    layout = Layout(devices=8, tensor_model_parallel_size=2, sequence_parallel=True, global_batch_size=16)
    found = by_name(communication(plan, layout, Optimizer(), sequence_length=8192))
    activation, layers, micro_batches = 2 * 8192 * 4096, 32, 4
    assert found["tensor/all_gather"] == micro_batches * activation * (6 * layers + 3)
    assert found["tensor/reduce_scatter"] == micro_batches * activation * (4 * layers + 2)
    norms = 4 * 4096 * (2 * layers + 1)
    assert found["tensor/all_reduce"] == micro_batches * 3 * 4 * 8192 + norms
    weights = 8_030_261_248 // 2 + 4096 * (2 * layers + 1) // 2  # norms are whole on both
    assert found["data/reduce_scatter"] == 4 * weights
    assert found["data/all_gather"] == 2 * weights


def test_transformer_engines_ring() -> None:
    """Keys and values of the other part go by once forward; backward they do again, with their gradients."""
    plan = compile_plan(load_recipe("llama3-8b", validate=False))
    layout = Layout(devices=2, context_parallel_size=2)
    found = by_name(communication(plan, layout, Optimizer(), sequence_length=8192))
    assert found["context/send"] == 3 * 32 * 2 * 4096 * 2 * 1024


def test_stages_send_less_at_the_ends() -> None:
    plan = compile_plan(load_recipe("llama3-8b", validate=False))
    pipeline = PipelineLayout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
    layout = Layout(devices=4, pipeline=pipeline, global_batch_size=8)
    activation = 8 * 2 * 8192 * 4096
    sent = [
        by_name(communication(plan, layout, Optimizer(), sequence_length=8192, stage=stage))["pipeline/send"]
        for stage in range(4)
    ]
    assert sent == [3 * activation, 4 * activation, 4 * activation, 3 * activation]


def test_gathering_twice_with_experts() -> None:
    """Without overlap each of megatron-core's two optimizers gathers all weights."""
    plan = compile_plan(load_recipe("qwen3-30b-a3b", validate=False))
    layout = Layout(devices=8, expert_model_parallel_size=4)
    apart, together = (
        by_name(communication(plan, layout, Optimizer(overlap_grad_reduce=on, overlap_param_gather=on), sequence_length=4096))
        for on in (False, True)
    )
    assert apart["data/all_gather"] == 2 * together["data/all_gather"]


def test_an_unknown_dispatcher() -> None:
    plan = compile_plan(load_recipe("qwen3-30b-a3b", validate=False))
    with pytest.raises(ConfigError, match="moe_token_dispatcher_type='flex': its communication is unknown"):
        communication(plan, Layout(), Optimizer(), sequence_length=4096, dispatcher="flex")
