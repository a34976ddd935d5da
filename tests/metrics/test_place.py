"""Four real ranks without megatron-core: whose batches count, and what nobody said is not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from launch import launch
from place_worker import MODEL, STEPS, length
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from bridge.flops import ConfigError, compile_plan
from bridge.metrics.place import Dimension, Place, _dimension, _several, check_dimensions, find_place

WORKER = Path(__file__).with_name("place_worker.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("place")
    finished = launch(4, str(WORKER), str(folder))
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def flops(replicas: int) -> int:
    """Of replicas that each see their sequences once."""
    lengths = [length(replica, step) for replica in range(replicas) for step in range(STEPS)]
    return compile_plan(MODEL, convention="exact").flops(lengths)


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "replicas"),
    [
        ("nobody says anything", 4),
        ("fsdp", 4),
        ("hsdp", 4),
        ("mesh", 2),
        ("crossed mesh", 2),
        ("two dimensions of data", 4),
        ("group", 2),
        ("contributes", 2),
        ("process group", 2),
    ],
)
def test_each_batch_counts_once(ranks, case, replicas):
    for rank in ranks:
        row = rank[case]["latest"]
        assert row["throughput/total_flops"] == flops(replicas), rank[case]["told"]
        work = [sum(length(replica, step) for step in range(STEPS - 2, STEPS)) for replica in range(replicas)]
        assert row["throughput/imbalance/data_parallel"] == pytest.approx(max(work) * replicas / sum(work), rel=0.05)
        assert rank[case]["complete"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("tensor parallel, nobody says so", "up.weight is sharded over a mesh of (4,) ranks, 1 of them data parallel"),
        ("tensor and data parallel, nobody says so", "gradients are averaged over 2 of 4 ranks"),
        ("sequence parallel, nobody says so", "attention over a sequence-parallel group"),
        ("ddp over half of the ranks", "gradients are averaged over 2 of 4 ranks"),
    ],
)
def test_ranks_that_share_batches_are_refused_in_one_sentence_where_nobody_said_so(ranks, case, why):
    for rank in ranks:
        first = next(line for line in rank[case]["told"] if "stopped counting" in line)
        assert f"ranks share their batches ({why}" in first
        assert "mesh= and data_parallel=" in first
        assert (rank[case]["latest"], rank[case]["complete"]) == ({}, False)


@pytest.mark.slow
def test_sums_of_different_steps_are_found_out(ranks):
    case = "one rank's steps are off"
    assert all((rank[case]["latest"], rank[case]["complete"]) == ({}, False) for rank in ranks)
    assert "the sum of step 2 met sums of other steps (their mean is 4.5)" in ranks[0][case]["told"][0]


@pytest.mark.slow
def test_a_group_that_is_gone_leaves_no_total_rather_than_this_ranks_alone(ranks):
    case = "the group is gone"
    for rank in ranks:
        assert rank[case]["latest"]["step"] == 2  # the row that had arrived
        assert rank[case]["complete"] is False
        assert "the process group" in rank[case]["told"][0]


@pytest.mark.slow
def test_a_dimension_that_is_not_there_is_named(ranks):
    assert ranks[0]["no such dimension"] == "data_parallel='ddp' must be names of the mesh's dimensions; it has dp, tp"


@pytest.mark.slow
def test_ranks_are_placed_as_the_mesh_says(ranks):
    for index, rank in enumerate(ranks):
        assert rank["places"]["mesh"] == {"data_parallel": index // 2, "tensor": index % 2}
        assert rank["places"]["crossed"] == {"tensor": index // 2, "data_parallel": index % 2}


def test_a_process_alone():
    assert find_place() == Place()
    assert find_place().holds()
    assert Dimension("tensor", 2, 4).index(5) == 1
    with pytest.raises(ConfigError, match="names dimensions of a mesh"):
        find_place(data_parallel="dp")


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        ([0, 1, 0, 1], Dimension("tensor", 2, 1)),
        ([0, 0, 1, 1], Dimension("tensor", 2, 2)),
        ([0, 0, 1, 1, 2, 2], Dimension("tensor", 3, 2)),
        ([0, 0], None),
        ([0, 1, 1, 0], None),
    ],
)
def test_a_dimension_is_found_by_what_its_ranks_are_in_it(indices, found):
    assert _dimension("tensor", indices) == found


def test_a_dimension_of_one_rank_is_none():
    assert _several("data_parallel", 1) == ()
    assert _several("data_parallel", 2) == (Dimension("data_parallel", 2, 1),)


@pytest.fixture
def sixth_of_eight():
    """Rank 5 of eight, whose groups move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("chunks", [None, 2])
def test_megatron_cores_groups_are_dimensions_and_a_stage_is_of_one_chunk_unless_it_says_more(sixth_of_eight, chunks):
    parallel_state = pytest.importorskip("megatron.core.parallel_state")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=chunks,
        create_gloo_process_groups=False,
    )
    try:
        place = find_place()
    finally:
        parallel_state.destroy_model_parallel()
    assert place == Place(
        rank=5,
        world=8,
        replica=0,
        replicas=2,
        contributes=False,
        pipeline=2,
        virtual=chunks or 1,
        tensor=2,
        dimensions=(Dimension("data_parallel", 2, 2), Dimension("pipeline", 2, 4), Dimension("tensor", 2, 1)),
    )


def test_a_group_of_all_ranks_is_a_dimension_and_one_of_some_is_none(sixth_of_eight):
    everyone = find_place(data_parallel=dist.group.WORLD)
    assert everyone.dimensions == (Dimension("data_parallel", 8),)
    assert (everyone.replica, everyone.replicas, everyone.contributes) == (5, 8, True)
    pair = find_place(data_parallel=dist.new_group([1, 5]))
    assert pair.dimensions == ()
    assert (pair.rank, pair.world, pair.replica, pair.replicas, pair.contributes) == (5, 8, 1, 2, False)


def test_dimensions_of_data_are_names_of_the_mesh(sixth_of_eight):
    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    assert check_dimensions(mesh, "tp") == ("tp",)
    assert check_dimensions(mesh, ["dp", "tp"]) == ("dp", "tp")
    with pytest.raises(ConfigError, match="data_parallel='dp' must be names of the mesh's dimensions; it has none"):
        check_dimensions(init_device_mesh("cpu", (2, 4)), "dp")
