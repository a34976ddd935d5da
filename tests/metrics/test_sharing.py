"""Whether ranks share their batches: torch's own wrappers, meshes and parameters, in a process group that moves nothing."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from bridge.metrics.sharing import _REMEDY, shared_batches

WORLD = 8


@pytest.fixture(autouse=True)
def ranks():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    yield
    dist.destroy_process_group()


def layer() -> torch.nn.Linear:
    return torch.nn.Linear(8, 8)


def why(*chunks) -> str | None:
    found = shared_batches(chunks, WORLD)
    if found is None:
        return None
    assert found.startswith("ranks share their batches (")
    assert found.endswith(f"), so the sum over all would count them several times; {_REMEDY}")
    return found.partition(" (")[2].partition("), so")[0]


def test_gradients_over_all_ranks_say_nothing_and_over_fewer_they_share():
    assert why(DistributedDataParallel(layer())) is None
    half = dist.new_group(range(4))
    assert why(DistributedDataParallel(layer(), process_group=half)) == "gradients are averaged over 4 of 8 ranks"


def test_the_largest_group_counts_and_any_chunk_tells():
    half, whole = dist.new_group(range(4)), dist.group.WORLD
    both = torch.nn.Sequential(*(DistributedDataParallel(layer(), process_group=group) for group in (half, whole)))
    assert why(both) is None
    assert why(layer(), DistributedDataParallel(layer(), process_group=half)) is not None


def test_fully_sharded_models():
    flat = init_device_mesh("cpu", (8,), mesh_dim_names=("dp",))
    square = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    assert why(fully_shard(layer(), mesh=flat)) is None
    assert why(fully_shard(layer(), mesh=square)) is None  # replicas of shards: all of them see other batches
    assert why(fully_shard(layer(), mesh=square["dp"])) == "gradients are averaged over 2 of 8 ranks"


def test_weights_that_are_cut_beyond_the_replicas():
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=("tp",))
    cut, copied = layer(), layer()
    cut.weight = torch.nn.Parameter(distribute_tensor(torch.zeros(8, 8), mesh, [Shard(0)]))
    copied.weight = torch.nn.Parameter(distribute_tensor(torch.zeros(8, 8), mesh, [Replicate()]))
    assert why(cut) == "weight is sharded over a mesh of (8,) ranks, 1 of them data parallel"
    assert why(copied) is None


def test_hybrid_shards_multiply():
    """FSDP of torch 1: ranks that a unit is cut over, times the nodes that hold the same."""
    unit = type("FullyShardedDataParallel", (torch.nn.Module,), {})()
    unit.process_group = dist.new_group(range(4))
    assert why(unit) == "gradients are averaged over 4 of 8 ranks"
    unit._inter_node_pg = dist.new_group([0, 4])
    assert why(unit) is None


def test_attention_over_a_group_of_sequences():
    ulysses = type("DistributedAttention", (torch.nn.Module,), {})()
    ulysses.spg = dist.new_group([0])
    assert why(torch.nn.Sequential(ulysses)) is None  # alone
    ulysses.spg = dist.new_group([0, 1])
    assert why(torch.nn.Sequential(ulysses)) == "attention over a sequence-parallel group"
    other = torch.nn.Identity()
    other.spg = ulysses.spg
    assert why(other) is None


@pytest.mark.parametrize(("answer", "said"), [(1, None), (2, "DeepSpeed's sequence-parallel groups have 2 ranks"), (None, None)])
def test_deepspeeds_groups_where_they_are_set_up(monkeypatch, answer, said):
    groups = ModuleType("deepspeed.utils.groups")
    groups._get_sequence_parallel_world_size = lambda: answer if answer else 1 // 0
    monkeypatch.setitem(sys.modules, "deepspeed.utils.groups", groups)
    assert why(layer()) == said


def test_what_is_no_module_and_no_model_say_nothing():
    assert shared_batches(None, WORLD) is None
    assert shared_batches([], WORLD) is None
    assert shared_batches([SimpleNamespace(process_group=None)], WORLD) is None
    assert why(layer()) is None
