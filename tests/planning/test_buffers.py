"""Gradient buffers: entry for entry those of megatron-core's own classes, and what an optimizer keeps of a weight."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from bridge.flops import ConfigError, compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.buffers import Buffer, Optimizer, buffers, stage_buffers
from bridge.planning.layouts import Layout
from bridge.planning.shards import ParameterShard


def megatrons(sizes, alone, ranks, rank, bucket):
    """Entries of megatron-core's buffer, and those of parameters in the slice of a rank."""
    grads = pytest.importorskip("megatron.core.distributed.param_and_grad_buffer")
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        group = dist.group.WORLD
        params = [torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in sizes]
        for number in alone:
            params[number].shared_embedding = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "current_device", lambda: "cpu")
            buffer = grads._ParamAndGradBuffer(
                DistributedDataParallelConfig(use_distributed_optimizer=True),
                torch.bfloat16,
                torch.float32,
                params,
                group,
                bucket,
                {param: str(number) for number, param in enumerate(params)},
                1.0,
                list(range(len(params))),
                False,
                SimpleNamespace(tp=group, dp_cp=group),
            )
        (held,) = DistributedOptimizer._build_gbuf_range_map(buffer).values()
        return buffer.numel, sum(own["param"].size for one in held for own in one["param_map"].values())
    finally:
        dist.destroy_process_group()


@settings(max_examples=60)
@given(st.data())
def test_buckets_and_slices_are_megatron_cores(data):
    sizes = data.draw(st.lists(st.integers(1, 700), min_size=1, max_size=6))
    alone = data.draw(st.sets(st.integers(0, len(sizes) - 1), max_size=2))
    ranks = data.draw(st.sampled_from([1, 2, 3, 5, 8]))
    rank = data.draw(st.integers(0, ranks - 1))
    bucket = data.draw(st.none() | st.integers(1, 900))
    shards = [ParameterShard(str(number), size, alone=number in alone) for number, size in enumerate(sizes)]
    (found,) = buffers(shards, Layout(devices=ranks), Optimizer(), bucket)
    assert (found.numel, found.slices[rank]) == megatrons(sizes, alone, ranks, rank, bucket)
    assert (sum(found.slices), found.own, found.ranks) == (sum(sizes), sum(sizes), ranks)


def test_a_bucket_is_closed_when_it_is_full():
    """The last parameter comes first; 64 entries fill a bucket of 64, whose end is at a multiple of 128."""
    shards = [ParameterShard("first", 10), ParameterShard("second", 64)]
    assert buffers(shards, Layout(), Optimizer(), 64) == [Buffer(256, 1, 74, (74,))]
    assert buffers(shards, Layout(), Optimizer(), 65) == [Buffer(128, 1, 74, (74,))]
    (halves,) = buffers(shards, Layout(devices=2), Optimizer(), None)
    assert halves.slices == (64, 10)


def test_without_the_distributed_optimizer_nothing_is_aligned_and_all_is_everybodys():
    shards = [ParameterShard("a", 10), ParameterShard("b", 7)]
    plain = Optimizer(use_distributed_optimizer=False)
    assert buffers(shards, Layout(devices=2), plain, None) == [Buffer(17, 2, 17, (17, 17))]


def test_experts_have_their_own_and_what_does_not_train_none():
    layout = Layout(devices=8, expert_model_parallel_size=4)
    shards = [ParameterShard("a", 128), ParameterShard("e", 256, expert=True), ParameterShard("f", 999, trains=False),
              ParameterShard("none", 0)]  # fmt: skip
    dense, experts = buffers(shards, layout, Optimizer(), None)
    assert (dense.expert, dense.ranks, dense.own) == (False, 8, 128)
    assert (experts.expert, experts.ranks, experts.own) == (True, 2, 256)
    assert buffers([], layout, Optimizer(), None) == []


def test_the_buffers_of_a_stage_chunk_by_chunk():
    plan = compile_plan({"num_layers": 4, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 16, "vocab_size": 10,
                         "make_vocab_size_divisible_by": 2})  # fmt: skip
    layer = 8 * 24 + 8 * 8 + 2 * 8 * 16 + 2 * 8
    pipeline = PipelineLayout(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    layout = Layout(devices=2, pipeline=pipeline)
    assert [one.own for one in stage_buffers(plan, layout, Optimizer(), 0)] == [80 + layer, layer]
    assert [one.own for one in stage_buffers(plan, layout, Optimizer(), 1)] == [layer, layer + 8 + 80]


@pytest.mark.parametrize(
    ("options", "replicas", "stage", "chunk", "size"),
    [
        ({}, 64, 0, 0, None),
        ({"overlap_grad_reduce": True}, 1, 0, 0, 40_000_000),
        ({"overlap_grad_reduce": True}, 40, 0, 0, 40_000_000),
        ({"overlap_grad_reduce": True}, 41, 0, 0, 41_000_000),
        ({"overlap_grad_reduce": True}, 41, 1, 0, None),
        ({"overlap_grad_reduce": True}, 41, 0, 1, None),
    ],
)
def test_only_the_first_stages_first_chunk_is_cut_into_buckets(options, replicas, stage, chunk, size):
    assert Optimizer(**options).bucket_size(Layout(devices=replicas), stage, chunk) == size


def test_a_precise_optimizer_is_smaller() -> None:
    """With a bf16 weight's lower 16 bits as its main copy, and moments of 8 bits: 2 + 1 + 1 bytes instead of 12."""
    narrow = Optimizer(use_precision_aware_optimizer=True, exp_avg_dtype="fp8", exp_avg_sq_dtype="fp8")
    assert (Optimizer().state_bytes, narrow.state_bytes) == (12, 4)
    assert Optimizer(params_dtype="fp32").state_bytes == 8
    assert Optimizer(optimizer="sgd").state_bytes == 8
    assert Optimizer(use_precision_aware_optimizer=True, store_param_remainders=False).state_bytes == 12


def test_more_of_an_optimizers_bytes():
    """Momentum alone for SGD; no main copy where weights are fp32; a narrow main copy has no remainder."""
    assert Optimizer(optimizer="sgd", params_dtype="fp32").state_bytes == 4
    precise = {"use_precision_aware_optimizer": True}
    assert Optimizer(**precise).state_bytes == 2 + 4 + 4
    assert Optimizer(**precise, params_dtype="fp16").state_bytes == 4 + 4 + 4  # the remainder is bf16's
    assert Optimizer(**precise, main_params_dtype="fp16").state_bytes == 2 + 4 + 4
    assert Optimizer(**precise, optimizer="sgd", exp_avg_sq_dtype="uint8", exp_avg_dtype="bf16").state_bytes == 2 + 2
    for name, weight, gradient, narrow in (("bf16", 2, 4, 2), ("fp16", 2, 4, 2), ("fp32", 4, 4, 4)):
        held, other = Optimizer(params_dtype=name), Optimizer(params_dtype=name, grad_reduce_in_fp32=False)
        assert (held.weight_bytes, held.gradient_bytes, other.gradient_bytes) == (weight, gradient, narrow)


def test_what_a_recipe_says():
    assert Optimizer.of({}) == Optimizer()
    cfg = {"optimizer": {"optimizer": "sgd", "use_distributed_optimizer": False, "lr": 1.0}, "model": {"bf16": True}}
    assert Optimizer.of(cfg) == Optimizer(optimizer="sgd", use_distributed_optimizer=False)
    assert Optimizer.of({"model": {"bf16": False}}) == Optimizer(params_dtype="fp32", grad_reduce_in_fp32=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lion"}, "optimizer='lion' is not known; choose adam or sgd"),
        ({"params_dtype": "int4"}, "params_dtype='int4' is not known; choose one of fp32, bf16, fp16, fp8, uint8"),
        ({"exp_avg_sq_dtype": "fp4"}, "exp_avg_sq_dtype='fp4' is not known"),
        ({"use_precision_aware_optimizer": True, "use_distributed_optimizer": False},
         "use_precision_aware_optimizer needs use_distributed_optimizer"),
    ],
)  # fmt: skip
def test_optimizers_that_cannot_be(options, words):
    with pytest.raises(ConfigError) as error:
        Optimizer(**options)
    assert str(error.value).startswith(words)
