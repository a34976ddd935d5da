"""What Megatron-Bridge's loop asks of its ``flop_utils``: sums by hand, on two ranks by brute force, and the step's price."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import megatron_bridge_flops_worker as fed
import megatron_bridge_stubs
import pytest
import torch
from launch import launch

from bridge.config import list_recipes, load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read_vision
from bridge.training.utils import flop_utils
from bridge.training.utils.flop_utils import (
    GlobalFlopsRuntimeStats,
    accumulate_flops_metadata,
    get_model_chunk_vp_stage,
    num_floating_point_operations,
    resolve_global_flops_runtime_stats,
    resolve_global_flops_seqlen_stats,
    vision_patch_stats_from_grid_thw,
    vit_flops,
    vit_flops_from_grid_thw,
    vit_flops_from_patch_stats,
)

HERE = Path(__file__).parent
ROWS_OF_64 = torch.zeros(2, 64)


def sums(*micro_batches: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a state after some micro-batches, without the common beginning of their names."""
    state = SimpleNamespace()
    for micro_batch in micro_batches:
        accumulate_flops_metadata(state, **micro_batch)
    return {name.removeprefix("_flops_"): value for name, value in vars(state).items()}


# ---- a micro-batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("micro_batch", "tokens", "squares"),
    [
        ({}, 2 * 64, 2 * 64**2),
        ({"config_seq_len": 128}, 2 * 128, 2 * 128**2),
        ({"config_seq_len": 0}, 2 * 64, 2 * 64**2),
        ({"cu_seqlens": torch.tensor([0])}, 2 * 64, 2 * 64**2),
        ({"cu_seqlens": torch.tensor([0, 9]), "cu_seqlens_argmin": torch.tensor(1)}, 2 * 64, 2 * 64**2),
    ],
    ids=["tensor", "configured length", "no configured length", "no sequence", "no sequence before the end"],
)
def test_a_dense_micro_batch(micro_batch, tokens, squares):
    assert sums({"tokens": ROWS_OF_64, **micro_batch}) == {"seqlen_sum": tokens, "seqlen_sq_sum": squares}


@pytest.mark.parametrize(
    ("offsets", "squares"),
    [
        ({"cu_seqlens": torch.tensor([0, 3, 3, 20, 64])}, 3**2 + 17**2 + 44**2),
        ({"cu_seqlens": torch.tensor([[0, 3, 20, 64]], dtype=torch.int32)}, 3**2 + 17**2 + 44**2),
        ({"cu_seqlens": torch.tensor([[0, 3, 20], [0, 9, 20]])}, 3**2 + 17**2 + 9**2 + 11**2),
        ({"cu_seqlens": torch.tensor([0, 3, 20, -1, -1])}, 3**2 + 17**2),
        ({"cu_seqlens": torch.tensor([0, 3, 20, 64, 64]), "cu_seqlens_argmin": torch.tensor([3])}, 3**2 + 17**2),
        ({"cu_seqlens": torch.tensor([0, 4, 64]), "cu_seqlens_unpadded": torch.tensor([0, 3, 50])}, 3**2 + 47**2),
        (
            {
                "cu_seqlens": torch.tensor([0, 4, 64]),
                "cu_seqlens_argmin": torch.tensor(2),
                "cu_seqlens_unpadded": torch.tensor([0, 3, 50, 0]),
                "cu_seqlens_unpadded_argmin": torch.tensor(3),
            },
            3**2 + 47**2,
        ),
        ({"cu_seqlens": torch.tensor([0, 100_000], dtype=torch.int32)}, 10**10),
    ],
    ids=["offsets", "a row of them", "two rows", "padded", "ended", "unpadded", "unpadded and ended", "beyond int32"],
)
def test_packed_sequences(offsets, squares):
    """Tokens are those of the tensor, whatever length a dense batch would have."""
    found = sums({"tokens": ROWS_OF_64, "config_seq_len": 4096, **offsets})
    assert found == {"seqlen_sum": 2 * 64, "seqlen_sq_sum": squares, "requires_global_reduce": True}


def test_micro_batches_add_and_only_the_first_chunk_adds():
    packed = {"tokens": ROWS_OF_64, "cu_seqlens": torch.tensor([0, 3, 20])}
    batches = [packed | {"vp_stage": stage} for stage in (None, 0, 1, 2)]
    found = sums(*batches, {"tokens": None}, {"tokens": ROWS_OF_64})
    assert found["seqlen_sum"] == 3 * 2 * 64
    assert found["seqlen_sq_sum"] == 2 * (3**2 + 17**2) + 2 * 64**2


def test_cross_attention():
    """Padding of the keys is in their sum and not in the product."""
    queries = {"tokens": ROWS_OF_64, "cu_seqlens": torch.tensor([0, 4, 12]), "cu_seqlens_unpadded": torch.tensor([0, 3, 8])}
    keys = {"cross_cu_seqlens": torch.tensor([0, 8, 24]), "cross_cu_seqlens_unpadded": torch.tensor([0, 7, 20])}
    found = sums(queries | keys)
    assert found["cross_seqlen_sum"] == 24
    assert found["cross_seqlen_product_sum"] == 3 * 7 + 5 * 13
    for name, product in (("cross_cu_seqlens", 3 * 8 + 5 * 16), ("cross_cu_seqlens_unpadded", 3 * 7 + 5 * 13)):
        found = sums(queries | {name: keys[name]})
        assert (found["cross_seqlen_sum"], found["cross_seqlen_product_sum"]) == (int(keys[name][-1]), product)


def test_a_micro_batch_that_cannot_be_is_not_added():
    state = SimpleNamespace()
    wrong = [
        ({"cu_seqlens": torch.tensor([0, 3, 8]), "cross_cu_seqlens": torch.tensor([0, 9])}, "sequences, not 2 and 1: give cu_"),
        ({"cross_cu_seqlens": torch.tensor([0, 9])}, "sequences, not none and 1: give cu_seqlens"),
        ({"vision_patch_stats": (1, 2)}, r"vision_patch_stats=\(1, 2\) must be three sums"),
    ]
    for micro_batch, message in wrong:
        with pytest.raises(ValueError, match=message):
            accumulate_flops_metadata(state, ROWS_OF_64, **micro_batch)
    assert vars(state) == {}


def test_images():
    found = sums(
        {"tokens": ROWS_OF_64, "vision_patch_stats": (100, 10_000, 25), "num_vision_patches": 7},
        {"tokens": ROWS_OF_64, "vision_patch_stats": (0, 0, 0)},
        {"tokens": ROWS_OF_64, "num_vision_patches": torch.tensor(8)},
    )
    assert found["vision_patches"] == torch.tensor(15)
    assert (found["vision_patch_sum"], found["vision_patch_sq_sum"], found["vision_merged_token_sum"]) == (100, 10_000, 25)
    assert found["requires_global_reduce"] is True
    assert "requires_global_reduce" not in sums({"tokens": ROWS_OF_64, "num_vision_patches": 7})


def test_whatever_a_state_has_instead_of_a_sum_is_nothing():
    state = MagicMock()
    accumulate_flops_metadata(state, ROWS_OF_64)
    assert (state._flops_seqlen_sum, state._flops_seqlen_sq_sum) == (2 * 64, 2 * 64**2)


class OnDevice(torch.Tensor):
    """A tensor with numbers in it that, like one on a device, cannot be read without waiting: reading fails."""

    is_cpu = property(lambda self: False)

    def wait(self, *_: Any) -> Any:
        raise AssertionError("waited for the device")

    item = tolist = cpu = numpy = __int__ = __bool__ = __index__ = __float__ = wait  # type: ignore[assignment]


EVERYTHING = {
    "cu_seqlens": [0, 4, 12, 16],
    "cu_seqlens_argmin": 4,
    "cu_seqlens_unpadded": [0, 3, 8, 9, 30, -1],
    "cu_seqlens_unpadded_argmin": 4,
    "cross_cu_seqlens": [0, 8, 24, 24, 24, 24],
    "cross_cu_seqlens_unpadded": [0, 7, 20, 20, 20, 20],
}


def test_nothing_waits_for_a_device():
    def on_device(values: Any) -> Any:
        return torch.tensor(values).as_subclass(OnDevice)

    def value(total: Any) -> int:
        assert isinstance(total, OnDevice)
        return int(total.as_subclass(torch.Tensor))

    grids = on_device([[1, 4, 6], [3, 4, 4]])
    images = vision_patch_stats_from_grid_thw(grids, spatial_merge_size=2)
    batch = {name: on_device(values) for name, values in EVERYTHING.items()}
    batch |= {"tokens": on_device([[0.0] * 16]), "vision_patch_stats": images, "num_vision_patches": on_device(72)}
    found = sums(batch, batch)
    assert found.pop("requires_global_reduce") is True
    assert found.pop("seqlen_sum") == 2 * 16  # of shapes alone
    assert {name: value(total) for name, total in found.items()} == {
        "seqlen_sq_sum": 2 * (3**2 + 5**2 + 1),
        "cross_seqlen_sum": 2 * 24,
        "cross_seqlen_product_sum": 2 * (3 * 7 + 5 * 13),
        "vision_patches": 2 * 72,
        "vision_patch_sum": 2 * (24 + 48),
        "vision_patch_sq_sum": 2 * (24**2 + 3 * 16**2),
        "vision_merged_token_sum": 2 * (6 + 12),
    }
    assert value(vit_flops_from_grid_thw(SMALL, grids)) == 768 * 72 + 48 * (24**2 + 3 * 16**2) + 3072 * 18


def test_no_number_is_read_to_know_a_shape():
    """Tensors without numbers will do."""
    batch = {name: torch.tensor(values, device="meta") for name, values in EVERYTHING.items()}
    found = sums({"tokens": torch.zeros(1, 16, device="meta"), **batch})
    assert found["seqlen_sum"] == 16
    assert {found[name].shape for name in ("seqlen_sq_sum", "cross_seqlen_sum", "cross_seqlen_product_sum")} == {torch.Size([])}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_a_cuda_device():
    batch = {name: torch.tensor(values, device="cuda") for name, values in EVERYTHING.items()}
    tokens = torch.zeros(1, 16, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = sums({"tokens": tokens, **batch})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (int(found["seqlen_sq_sum"]), int(found["cross_seqlen_product_sum"])) == (3**2 + 5**2 + 1, 3 * 7 + 5 * 13)


def test_the_stage_of_a_chunk():
    chunk = torch.nn.Linear(1, 1)
    assert get_model_chunk_vp_stage(chunk) is None
    chunk.vp_stage = 2
    assert get_model_chunk_vp_stage(chunk) == 2
    assert get_model_chunk_vp_stage(SimpleNamespace(module=SimpleNamespace(module=chunk))) == 2
    assert get_model_chunk_vp_stage(SimpleNamespace(vp_stage=None, module=chunk)) == 2
    assert get_model_chunk_vp_stage(MagicMock()) is None


# ---- a step ------------------------------------------------------------------------------------------


def resolved(attributes: dict[str, Any], **options: Any) -> GlobalFlopsRuntimeStats:
    state = SimpleNamespace(**{f"_flops_{name}": value for name, value in attributes.items()})
    return resolve_global_flops_runtime_stats(state, **options)


def test_without_a_group_every_rank_has_seen_the_same():
    seen = {"seqlen_sum": torch.tensor(10), "seqlen_sq_sum": 100, "vision_patches": 3, "cross_seqlen_sum": 5}
    expected = GlobalFlopsRuntimeStats(40, 400, 12, cross_seqlen_sum=20, cross_seqlen_product_sum=0)
    assert resolved(seen, data_parallel_size=4) == expected
    assert resolved(seen, data_parallel_size=4, vp_size=8, dp_group=object()) == expected
    # torch.distributed does not run
    assert resolved(seen | {"requires_global_reduce": True}, data_parallel_size=4, dp_group=object()) == expected


@pytest.mark.parametrize("nothing", [{}, {"seqlen_sum": 0, "seqlen_sq_sum": 0}, {"seqlen_sum": torch.zeros(0)}])
def test_nothing_seen_is_not_zero(nothing):
    assert resolved(nothing, data_parallel_size=2) == GlobalFlopsRuntimeStats(None, None)
    assert resolve_global_flops_seqlen_stats(SimpleNamespace(), data_parallel_size=2) == (None, None, 0)


def test_the_statistics():
    stats = GlobalFlopsRuntimeStats(1, 2)
    assert list(asdict(stats).values()) == [1, 2, 0, 0, 0, 0, None, None]
    assert not replace(stats, num_vision_patches=5).has_exact_vision_stats
    assert replace(stats, vision_patch_sum=5).has_exact_vision_stats
    with pytest.raises(AttributeError):
        stats.seqlen_sum = 2


def test_signatures():
    """What Megatron-Bridge's loop and forward steps call them with."""
    stats = ["data_parallel_size", "vp_size", "dp_group"]
    expected = {
        "accumulate_flops_metadata": [
            "state",
            "tokens",
            "vp_stage",
            "config_seq_len",
            "cu_seqlens",
            "cu_seqlens_argmin",
            "cu_seqlens_unpadded",
            "cu_seqlens_unpadded_argmin",
            "cross_cu_seqlens",
            "cross_cu_seqlens_unpadded",
            "num_vision_patches",
            "vision_patch_stats",
        ],
        "resolve_global_flops_runtime_stats": ["state", *stats, "include_vision_patch_stats", "include_cross_attention_stats"],
        "resolve_global_flops_seqlen_stats": ["state", *stats],
        "get_model_chunk_vp_stage": ["model"],
        "vision_patch_stats_from_grid_thw": ["grid_thw", "spatial_merge_size"],
        "vit_flops_from_patch_stats": ["cfg", "patch_sum", "patch_squared_sum", "merged_token_sum"],
        "vit_flops_from_grid_thw": ["cfg", "grid_thw"],
        "_packed_data_exists": ["path"],
        "vit_flops": ["cfg", "batch_size", "num_patches"],
    }
    assert {name: list(inspect.signature(getattr(flop_utils, name)).parameters) for name in expected} == expected


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    done = launch(2, fed.__file__, str(folder), GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def ceil(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def text(*packed: list[list[int]]) -> dict[str, int]:
    lengths = [length for rank in packed for row in rank for length in row]
    return {"seqlen_sum": sum(ceil(n, 8) for n in lengths), "seqlen_squared_sum": sum(n * n for n in lengths)}


FRAMES = [height * width for rank in fed.GRIDS for frames, height, width in rank for _ in range(frames)]
IMAGES = {
    "vision_patch_sum": sum(FRAMES),
    "vision_patch_squared_sum": sum(patches * patches for patches in FRAMES),
    "vision_merged_token_sum": sum(patches // 4 for patches in FRAMES),
}
CROSS = {
    "cross_seqlen_sum": sum(ceil(n, 4) for rank in fed.KEYS for n in rank),
    "cross_seqlen_product_sum": sum(
        query * key for rank, keys in zip(fed.PACKED, fed.KEYS, strict=True) for query, key in zip(rank[0], keys, strict=True)
    ),
}
ROWS, WIDTH = fed.DENSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("packed", text(*fed.PACKED)),
        ("virtual stages", text(*fed.PACKED)),
        ("context shared", text(fed.PACKED[0])),
        ("images", text(*fed.PACKED) | IMAGES),
        ("images not asked for", text(*fed.PACKED)),
        ("cross attention", text(*(rank[:1] for rank in fed.PACKED)) | CROSS),
        ("everything", text(*fed.PACKED) | IMAGES | CROSS),
        ("dense", {"seqlen_sum": 4 * ROWS * WIDTH, "seqlen_squared_sum": 4 * ROWS * WIDTH**2}),
        ("dense, context shared", {"seqlen_sum": 2 * ROWS * WIDTH, "seqlen_squared_sum": 2 * ROWS * WIDTH**2}),
        ("no data", {"seqlen_sum": None, "seqlen_squared_sum": None}),
    ],
)
def test_two_ranks(ranks, layout, expected):
    everything = asdict(GlobalFlopsRuntimeStats(None, None)) | expected
    assert [rank[layout] for rank in ranks] == [everything] * 2


# ---- vision ------------------------------------------------------------------------------------------

LANGUAGE = {
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 128,
    "seq_length": 32,
}
#: 3 x (8 x 16 + 4 x 4 x 8) = 768 a patch, 3 x 4 x 4 = 48 a pair, 3 x (2 x 16 x 16 + 2 x 16 x 16) = 3072 a merged token.
TOWER = {"depth": 1, "hidden_size": 4, "intermediate_size": 8, "spatial_merge_size": 2, "out_hidden_size": 16}
SMALL = {"model": LANGUAGE | {"vision_config": TOWER}}
STATISTICS = {"patch_sum": 10, "patch_squared_sum": 60, "merged_token_sum": 2}


def test_sums_of_a_grid():
    # A video's frames attend apart; a row's patches merge together.
    assert vision_patch_stats_from_grid_thw(torch.tensor([[2, 3, 5]]), spatial_merge_size=2) == (30, 2 * 15**2, 7)
    grids = torch.tensor([[[1, 4, 6]], [[3, 4, 4]]], dtype=torch.int32)
    assert vision_patch_stats_from_grid_thw(grids, spatial_merge_size=2) == (72, 24**2 + 3 * 16**2, 18)
    assert vision_patch_stats_from_grid_thw(torch.zeros(0, 3), spatial_merge_size=2) == (0, 0, 0)
    large = torch.tensor([[1, 50_000, 50_000]], dtype=torch.int32)
    assert vision_patch_stats_from_grid_thw(large, spatial_merge_size=1)[:2] == (2_500_000_000, 6_250_000_000_000_000_000)
    with pytest.raises(ValueError, match=r"\[..., 3\] \(frames, height, width\), not \[3, 2\]"):
        vision_patch_stats_from_grid_thw(torch.zeros(3, 2), spatial_merge_size=2)
    with pytest.raises(ValueError, match="spatial_merge_size=0 must be >= 1"):
        vision_patch_stats_from_grid_thw(torch.zeros(3, 3), spatial_merge_size=0)


def test_the_price_of_sums():
    assert vit_flops_from_patch_stats(SMALL, **STATISTICS) == 768 * 10 + 48 * 60 + 3072 * 2
    assert vit_flops_from_patch_stats({"model": LANGUAGE}, **STATISTICS) == 0
    # Without a language model to read, and below thinker_config.
    alone = SimpleNamespace(model=SimpleNamespace(thinker_config=SimpleNamespace(vision_config=SimpleNamespace(**TOWER))))
    assert vit_flops_from_patch_stats(alone, **STATISTICS) == 768 * 10 + 48 * 60 + 3072 * 2
    alone.model.hidden_size = 16  # not enough for a language model
    assert vit_flops_from_patch_stats(alone, **STATISTICS) == 768 * 10 + 48 * 60 + 3072 * 2
    with pytest.raises(ConfigError, match="vision_config.depth is missing"):
        vit_flops_from_patch_stats({"model": LANGUAGE | {"vision_config": {"hidden_size": 4}}}, **STATISTICS)


def test_one_merger_for_each_deepstack_index():
    """Also of a layer that is not there."""
    tower = TOWER | {"deepstack_visual_indexes": [0, 8, 16]}
    assert vit_flops_from_patch_stats({"model": LANGUAGE | {"vision_config": tower}}, **STATISTICS) == (
        768 * 10 + 48 * 60 + 4 * 3072 * 2
    )


def test_the_price_of_a_grid():
    grids = torch.tensor([[1, 25, 41], [1, 25, 41]])
    assert vit_flops_from_grid_thw(SMALL, grids) == vit_flops(SMALL, 2, 1025) == 768 * 2050 + 48 * 2 * 1025**2 + 3072 * 512
    assert vit_flops_from_grid_thw(SMALL, torch.tensor([[4, 8, 8]])) == vit_flops(SMALL, 4, 64)
    assert vit_flops_from_grid_thw({"model": LANGUAGE}, grids) == 0
    assert vit_flops_from_grid_thw(SMALL, torch.zeros(0, 3)) == 0


def test_patches_beyond_int64_stay_exact():
    large = {"patch_sum": 10**18, "patch_squared_sum": 10**20, "merged_token_sum": 10**17}
    assert vit_flops_from_patch_stats(SMALL, **large) == 768 * 10**18 + 48 * 10**20 + 3072 * 10**17


def test_frozen_parts_are_priced_as_they_run():
    """The tower forward only; all passes of the merger, since the norm before its first matmul trains."""
    frozen = {"model": SMALL["model"] | {"freeze_vision_model": True}}
    assert vit_flops_from_patch_stats(frozen, **STATISTICS) == 256 * 10 + 16 * 60 + 3072 * 2
    adapted = SMALL | {"peft": {"kind": "lora", "dim": 8, "target_modules": ["decoder.layers.*.linear_qkv"]}}
    for cfg in (SMALL, frozen, adapted):
        text = num_floating_point_operations(cfg, 2, 40, 1000)
        assert num_floating_point_operations(cfg, 2, 40, 1000, num_vision_patches=2 * 36) == text + vit_flops(cfg, 2, 36)


TOWERS = [path.stem for path in list_recipes() if "vision_config:" in path.read_text()]


@pytest.mark.parametrize("name", TOWERS)
def test_three_sums_price_every_tower(name):
    """Every tower of the recipes: the sums of its images give what the plan counts image by image."""
    recipe = load_recipe(name)
    plan, merge = compile_plan(recipe), read_vision(recipe).spatial_merge_size
    patches = [merge**2 * n for n in (16, 25, 64)]
    stats = sum(patches), sum(n * n for n in patches), sum(n // merge**2 for n in patches)
    names = ("patch_sum", "patch_squared_sum", "merged_token_sum")
    priced = vit_flops_from_patch_stats(recipe, **dict(zip(names, stats, strict=True)))
    assert priced == plan.evaluate(plan.measure([], patches))


# ---- the step's price --------------------------------------------------------------------------------


def test_a_step_as_the_loop_prices_it():
    """Two packed micro-batches with images and a video: the sum over every sequence, image and frame."""
    state = SimpleNamespace()
    rows = [([9, 7], [[1, 4, 4]]), ([12, 3, 1], [[2, 4, 6], [1, 2, 2]])]
    for lengths, grids in rows:
        stats = vision_patch_stats_from_grid_thw(torch.tensor(grids), spatial_merge_size=2)
        tokens, offsets = torch.zeros(1, 16), fed.offsets(lengths)
        accumulate_flops_metadata(state, tokens, cu_seqlens=offsets, vision_patch_stats=stats)
    stats = resolve_global_flops_runtime_stats(state, data_parallel_size=1, include_vision_patch_stats=True)
    assert stats.has_exact_vision_stats
    step = num_floating_point_operations(
        SMALL,
        batch_size=2,
        seqlen_sum=stats.seqlen_sum,
        seqlen_squared_sum=stats.seqlen_squared_sum,
        num_vision_patches=0,
        cross_seqlen_sum=stats.cross_seqlen_sum,
        cross_seqlen_product_sum=stats.cross_seqlen_product_sum,
    ) + vit_flops_from_patch_stats(
        SMALL,
        patch_sum=stats.vision_patch_sum,
        patch_squared_sum=stats.vision_patch_squared_sum,
        merged_token_sum=stats.vision_merged_token_sum,
    )
    lengths, frames = [9, 7, 12, 3, 1], [16, 24, 24, 4]
    assert step == compile_plan(SMALL).flops(lengths, frames)


@pytest.mark.slow
@pytest.mark.skipif(megatron_bridge_stubs.root() is None, reason="Megatron-Bridge is not installed: see the Makefile")
def test_it_stands_in_for_the_module():
    """The documented lines, then Megatron-Bridge's own import of its loop."""
    code = """
import documented, megatron.core, megatron_bridge_stubs
megatron_bridge_stubs.install()
ours = documented.run("Megatron-Bridge's own FLOPs", {})["flop_utils"]
from megatron.bridge.training import train
from megatron.bridge.training.utils import train_utils
assert train.flop_utils is ours
assert train_utils.num_floating_point_operations is ours.num_floating_point_operations
"""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_row_that_is_nearly_all_padding():
    """Fewer pairs than tokens: a bare sum like that is a mistake, one with padding in it is not."""
    state = SimpleNamespace()
    accumulate_flops_metadata(state, torch.zeros(1, 64), cu_seqlens=torch.tensor([0, 5]))
    stats = resolve_global_flops_runtime_stats(state, data_parallel_size=1)
    assert (stats.seqlen_sum, stats.seqlen_squared_sum) == (64, 25)
    # Matmuls of 6 x (2 x (4 x 16 x 16 + 2 x 16 x 32) + 16 x 128) a token; 2 layers x 2 matmuls x 3 passes x 16 a pair.
    found = num_floating_point_operations({"model": LANGUAGE}, 1, stats.seqlen_sum, stats.seqlen_squared_sum)
    assert found == 6 * 6144 * 64 + 2 * 2 * 3 * 16 * 25
    with pytest.raises(ConfigError, match="seqlen_squared_sum=25 is impossible for seqlen_sum=64"):
        num_floating_point_operations({"model": LANGUAGE}, 1, 64, 25)


# ---- packed files ------------------------------------------------------------------------------------


def test_packed_files_that_are_there(tmp_path):
    for name in ("a.npy", "shards/0.idx.parquet", "shards/1.idx.parquet", "rows.idx", "notes/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    there = ["a.npy", "shards", "shards/*.parquet", "shards/1.idx.parquet", "rows", "rows.bin"]
    missing = ["b.npy", "notes", "none", "shards/*.npy", "shards/2.idx.parquet", "a.npy/b.npy"]
    exists = {name: flop_utils._packed_data_exists(str(tmp_path / name)) for name in there + missing}
    assert exists == dict.fromkeys(there, True) | dict.fromkeys(missing, False)
    assert [flop_utils._packed_data_exists(nothing) for nothing in (None, "")] == [False, False]
