"""LoRA on a packed file, priced without runtime sums: exact from the file, or from the averages somebody else gives."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge.flops import compile_plan
from bridge.flops.moments import Moments
from bridge.training.utils import flop_utils
from bridge.training.utils.flop_utils import num_floating_point_operations

MODEL = {
    "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512, "seq_length": 64, "window_size": 12,
    "interleaved_attn_pattern": (1, 1),
}  # fmt: skip
STARTS = [[0, 5, 9], [0], [0, 40], [0, 1, 2, 3], [0, 30]]
TOTALS = [60, 64, 50, 20, 64]
#: Lengths without the last token of each sequence, of the rows in two batches of two.
LENGTHS = [4, 3, 50, 63, 39, 9, 0, 0, 0, 16]


@pytest.fixture(autouse=True)
def cache():
    flop_utils._lora_seq_stats_cache.clear()
    return flop_utils._lora_seq_stats_cache


@pytest.fixture
def dataset(tmp_path):
    table = pa.table({"input_ids": [[1] * total for total in TOTALS], "seq_start_id": STARTS})
    pq.write_table(table, tmp_path / "training_64.idx.parquet")
    return tmp_path / "training_64.idx.parquet"


def fine_tune(path, **model):
    return SimpleNamespace(
        model=SimpleNamespace(**MODEL | model),
        peft=SimpleNamespace(kind="lora", dim=8, target_modules=["linear_qkv"]),
        train=SimpleNamespace(global_batch_size=2),
        dataset=SimpleNamespace(packed_sequence_specs=SimpleNamespace(packed_train_data_path=path, packed_sequence_size=64)),
    )


@pytest.mark.parametrize("convention", ["megatron", "exact", "executed", "maxtext"])
def test_a_batch_costs_the_mean_of_the_batches_of_the_file(dataset, convention):
    cfg = fine_tune(str(dataset))
    both = compile_plan(cfg, convention).flops(LENGTHS)
    for rows in (1, 2, 4):
        assert num_floating_point_operations(cfg, rows, convention=convention) == Fraction(rows * both, 4)
    assert type(num_floating_point_operations(cfg, 4, convention=convention)) is type(both)


@pytest.mark.parametrize("micro_batch_size", [1, 2, None])
def test_what_runs_once_in_a_forward_pass(dataset, micro_batch_size):
    """DoRA measures its rows in every forward pass: as often as there are micro-batches of one row, of two, or one of all."""
    cfg = fine_tune(str(dataset))
    cfg.peft.kind, cfg.train.micro_batch_size = "dora", micro_batch_size
    rows = (LENGTHS[:3], LENGTHS[3:4], LENGTHS[4:6], LENGTHS[6:])
    plan, together = compile_plan(cfg), micro_batch_size or 4
    parts = [sum(rows[first : first + together], []) for first in range(0, 4, together)]
    expected = sum(plan.flops(part) for part in parts)
    assert expected - plan.flops(LENGTHS) == (len(parts) - 1) * plan.flops([0])
    assert num_floating_point_operations(cfg, 4) == expected
    sums = {"seqlen_sum": sum(LENGTHS), "seqlen_squared_sum": sum(length * length for length in LENGTHS)}
    grown = num_floating_point_operations(cfg, 4, **sums)
    cfg.train.micro_batch_size = None
    assert grown - num_floating_point_operations(cfg, 4, **sums) == (len(parts) - 1) * plan.flops([0])


def test_averages_of_another_function_are_taken_as_they_are(dataset, monkeypatch, cache):
    calls = []

    def averages(dataset_file, gbs, max_seq_len, drop_remainder):
        calls.append((dataset_file, gbs, max_seq_len, drop_remainder))
        return 2.5, 40.5, 900.0, 2250.0

    monkeypatch.setattr(flop_utils, "calculate_avg_seqlen", averages)
    cfg = fine_tune(str(dataset))
    for convention in ("megatron", "exact"):
        plan = compile_plan(cfg, convention)
        expected = plan.evaluate(plan.measure_moments(Moments(10, 162, 9000, 64)))
        assert num_floating_point_operations(cfg, 4, convention=convention) == expected
    assert calls == [(str(dataset), 2, 64, True)]
    assert list(cache.values()) == [(2.5, 40.5, 900.0, 2250.0)]


def test_the_key_is_the_file_the_batch_and_the_sequence_length(dataset, cache):
    cfg = fine_tune(str(dataset))
    num_floating_point_operations(cfg, 2)
    num_floating_point_operations(cfg, 3)
    assert len(cache) == 1
    cfg.train.global_batch_size = 4
    num_floating_point_operations(cfg, 2)
    assert len(cache) == 2
    num_floating_point_operations(fine_tune(str(dataset), seq_length=128), 2)
    assert len(cache) == 3
    dataset.write_bytes(dataset.read_bytes() + b"")  # the same bytes at another time
    num_floating_point_operations(cfg, 2)
    assert len(cache) == 4
    assert all(key[0][0].path == str(dataset) for key in cache)


def test_the_cache_is_bounded(dataset, monkeypatch, cache):
    monkeypatch.setattr(flop_utils, "calculate_avg_seqlen", lambda *args, **kwargs: (1, 60, 3600, 3600))
    for size in range(1, 3 * flop_utils._LORA_SEQ_STATS_CAPACITY):
        cfg = fine_tune(str(dataset))
        cfg.train.global_batch_size = size
        num_floating_point_operations(cfg, size)
    assert len(cache) == flop_utils._LORA_SEQ_STATS_CAPACITY
    assert [key[1] for key in cache][-1] == 3 * flop_utils._LORA_SEQ_STATS_CAPACITY - 1


def test_a_batch_of_nothing_and_a_configuration_without_train(dataset):
    cfg = fine_tune(dataset)
    assert num_floating_point_operations(cfg, 0) == 0
    del cfg.train
    assert num_floating_point_operations(cfg, 0) == 0
    assert num_floating_point_operations(cfg, 4, convention="exact") == compile_plan(cfg, "exact").flops(LENGTHS)


def test_images_are_added_to_the_table(dataset):
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "spatial_merge_size": 2,
        "out_hidden_size": 64,
        "num_heads": 2,
    }
    cfg = fine_tune(str(dataset), vision_config=tower)
    plan = compile_plan(cfg, "exact")
    assert num_floating_point_operations(cfg, 4, num_vision_patches=4 * 16, convention="exact") == plan.flops(LENGTHS, [16] * 4)


def test_a_missing_file_leaves_the_nominal_length(tmp_path):
    cfg = fine_tune(str(tmp_path / "absent.npy"))
    assert num_floating_point_operations(cfg, 2) == compile_plan(cfg).evaluate(
        compile_plan(cfg).measure_moments(Moments.of(2, 128, None, 64))
    )


def test_a_change_of_the_file_is_noticed_by_the_next_step(tmp_path):
    path = tmp_path / "rows.npy"
    cfg = fine_tune(str(path))
    for total in (10, 20, 30):
        np.save(path, np.array([{"input_ids": [1] * total, "seq_start_id": [0]}] * 2, object), allow_pickle=True)
        expected = compile_plan(cfg, "exact").flops([total - 1] * 2)
        assert num_floating_point_operations(cfg, 2, convention="exact") == expected
