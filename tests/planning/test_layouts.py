"""Layouts: sizes that fit, and each rank's place, as megatron-core's own generator of ranks has it."""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bridge.config import load_recipe
from bridge.flops import ConfigError
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.layouts import Layout

SIZE = st.sampled_from([1, 2, 3, 4])


def made(tensor=1, context=1, expert=1, expert_tensor=None, stages=1, times=1, **options):
    own = expert_tensor or tensor
    return Layout(
        devices=times * lcm(tensor * context * stages, own * expert * stages),
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
        pipeline=PipelineLayout(pipeline_model_parallel_size=stages),
        **options,
    )


@given(SIZE, SIZE, SIZE, SIZE | st.none(), SIZE, SIZE)
def test_ranks_stand_where_megatron_core_puts_them(tensor, context, expert, expert_tensor, stages, times):
    groups = pytest.importorskip("megatron.core.parallel_state")
    layout = made(tensor, context, expert, expert_tensor, stages, times)
    assume(layout.devices <= 96)
    own = expert_tensor or tensor
    sizes = {"pp": stages, "order": "tp-cp-ep-dp-pp"}
    dense = groups.RankGenerator(tp=tensor, ep=1, cp=context, dp=layout.data_parallel_size, **sizes)
    experts = groups.RankGenerator(tp=own, ep=expert, cp=1, dp=layout.expert_gradient_ranks, **sizes)
    assert dense.world_size == experts.world_size == layout.devices
    for is_expert, found in ((False, dense.get_ranks("dp-cp")), (True, experts.get_ranks("dp"))):
        for group in found:
            assert [layout.gradient_rank(rank, expert=is_expert) for rank in group] == list(range(len(group)))
            assert len(group) == (layout.expert_gradient_ranks if is_expert else layout.gradient_ranks)
    for group in dense.get_ranks("pp"):
        assert [layout.stage_of(rank) for rank in group] == list(range(stages))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 6, "tensor_model_parallel_size": 4}, "devices=6 do not hold a replica of 4 ranks"),
        ({"devices": 8, "expert_model_parallel_size": 3}, "devices=8 do not hold all experts of 3 ranks"),
        ({"devices": 8, "global_batch_size": 12}, "global_batch_size=12 is not divisible by micro_batch_size=1 x 8"),
        ({"devices": 0}, "devices=0 must be a positive integer"),
    ],
)
def test_layouts_that_cannot_be(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Layout(**options)


def test_sizes_by_hand():
    layout = Layout(devices=64, tensor_model_parallel_size=4, context_parallel_size=2, expert_model_parallel_size=8,
                    expert_tensor_parallel_size=1, micro_batch_size=3, global_batch_size=48,
                    pipeline=PipelineLayout(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=5))  # fmt: skip
    assert (layout.replica, layout.data_parallel_size, layout.gradient_ranks) == (16, 4, 8)
    assert (layout.experts_and_stages, layout.expert_gradient_ranks, layout.expert_tensor) == (16, 4, 1)
    assert (layout.stages, layout.chunks, layout.micro_batches) == (2, 5, 4)
    assert str(layout) == "TP 4, PP 2 x 5, CP 2, EP 8 (TP 1), DP 4"
    alone = Layout()
    assert (alone.chunks, alone.micro_batches, alone.expert_tensor, str(alone)) == (1, 1, 1, "one device")
    assert made(tensor=2, sequence_parallel=True, expert=2, stages=3).expert_tensor == 2
    assert str(made(tensor=2, sequence_parallel=True, expert=2, stages=3, times=2)) == "TP 2 + SP, PP 3, EP 2, DP 4"
    assert Layout(devices=4, micro_batch_size=2).micro_batches == 1  # unset: one micro-batch each


def test_what_weights_and_costs_hang_on():
    layout = Layout(devices=48, tensor_model_parallel_size=2, context_parallel_size=3, expert_model_parallel_size=4,
                    micro_batch_size=2, global_batch_size=32)  # fmt: skip
    core = layout.core
    assert (core.devices, core.context_parallel_size, core.micro_batch_size, core.global_batch_size) == (8, 1, 1, None)
    assert (core.tensor_model_parallel_size, core.expert_model_parallel_size) == (2, 4)
    assert (layout.cuts.devices, layout.cuts.expert_model_parallel_size) == (2, 1)
    assert made(tensor=2, times=4).cuts == made(tensor=2)
    assert layout.without_batch == Layout(devices=48, tensor_model_parallel_size=2, context_parallel_size=3,
                                          expert_model_parallel_size=4)  # fmt: skip
    more = replace(layout, pipeline=PipelineLayout(pipeline_model_parallel_size=2))
    assert (more.stages, more.data_parallel_size, layout.stages) == (2, 4, 1)


@pytest.mark.parametrize(
    ("parallel", "least"),
    [
        ({}, 1),
        ({"tensor_model_parallel_size": 2, "context_parallel_size": 3}, 6),
        ({"tensor_model_parallel_size": 2, "expert_model_parallel_size": 4}, 8),
        ({"tensor_model_parallel_size": 2, "expert_model_parallel_size": 3, "expert_tensor_parallel_size": 1}, 6),
        ({"context_parallel_size": 2, "expert_model_parallel_size": 3, "pipeline_model_parallel_size": 2}, 12),
    ],
)
def test_a_recipes_layout_on_as_few_devices_as_hold_it(parallel, least):
    cfg = {"parallel": parallel, "train": {"micro_batch_size": 2, "global_batch_size": 24}}
    found = Layout.of(cfg)
    assert (found.devices, found.global_batch_size, found.micro_batch_size) == (least, None, 2)
    assert {name: getattr(found, name) for name in parallel if name[:8] != "pipeline"} == {
        name: size for name, size in parallel.items() if name[:8] != "pipeline"
    }
    assert found.stages == parallel.get("pipeline_model_parallel_size", 1)
    if not parallel:
        told = Layout.of(cfg, 4)
        assert (told.devices, told.global_batch_size, told.micro_batches) == (4, 24, 3)


def test_a_recipe_that_is_loaded():
    layout = Layout.of(load_recipe("train_llama3_8b", validate=False), 64)
    assert layout.devices == 64
    assert layout.global_batch_size == load_recipe("train_llama3_8b", validate=False).train.global_batch_size
