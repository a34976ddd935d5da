"""The public functions: anchors, defaults, every kind of configuration object, self-pricing models, packed files."""

import argparse
import dataclasses
import pickle
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from bridge.flops import ConfigError, compile_plan
from bridge.training.utils import flop_utils
from bridge.training.utils.flop_utils import num_floating_point_operations, vit_flops

LLAMA3_8B = {
    "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
    "vocab_size": 128256, "gated_linear_unit": True, "seq_length": 8192,
}  # fmt: skip
TOWER = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2, "out_hidden_size": 3584,
}  # fmt: skip


@dataclasses.dataclass
class Provider:
    num_layers: int = 32
    hidden_size: int = 4096
    ffn_hidden_size: int = 14336
    num_attention_heads: int = 32
    num_query_groups: int = 8
    vocab_size: int = 128256
    gated_linear_unit: bool = True
    seq_length: int = 8192


@pytest.mark.parametrize(
    "cfg",
    [
        SimpleNamespace(model=SimpleNamespace(**LLAMA3_8B)),
        SimpleNamespace(model=Provider()),
        Provider(),
        {"model": LLAMA3_8B},
        LLAMA3_8B,
        OmegaConf.create({"model": LLAMA3_8B}),
        argparse.Namespace(**LLAMA3_8B),
    ],
    ids=["namespace", "dataclass", "bare-model", "mapping", "bare-mapping", "omegaconf", "argparse"],
)
def test_anchors(cfg):
    assert num_floating_point_operations(cfg) == 421645529382912
    assert num_floating_point_operations(cfg, 4, 10000, 40000000) == 481736785920000
    assert num_floating_point_operations(cfg, 2, 8192 + 4096, 8192**2 + 4096**2) == 619274154541056
    assert type(num_floating_point_operations(cfg, batch_size=3)) is int


@pytest.mark.parametrize(
    ("batch_size", "patches", "expected"),
    [(1, 1024, 3593679667200), (4, 1024, 14374718668800), (2, 1025, 7195252162560), (1, 0, 0), (1, -4, 0)],
)
def test_vit_anchors(batch_size, patches, expected):
    assert (
        vit_flops(SimpleNamespace(model=SimpleNamespace(vision_config=SimpleNamespace(**TOWER))), batch_size, patches) == expected
    )
    assert vit_flops({"model": {"thinker_config": {"vision_config": TOWER}}}, batch_size, patches) == expected


def test_no_tower_no_flops():
    assert vit_flops(SimpleNamespace(model=SimpleNamespace(**LLAMA3_8B)), 1, 1024) == 0
    assert num_floating_point_operations(LLAMA3_8B, 1, num_vision_patches=1024) == 421645529382912


def test_images_are_added_by_their_mean():
    with_tower = {"model": LLAMA3_8B | {"vision_config": TOWER}}
    text = num_floating_point_operations(with_tower, 2)
    assert num_floating_point_operations(with_tower, 2, num_vision_patches=2 * 1025) - text == 7195252162560


def test_a_change_of_the_configuration_is_noticed():
    cfg = SimpleNamespace(model=SimpleNamespace(**LLAMA3_8B))
    assert num_floating_point_operations(cfg) == 421645529382912
    cfg.model.num_layers = 16
    assert num_floating_point_operations(cfg) == num_floating_point_operations({"model": LLAMA3_8B | {"num_layers": 16}})
    cfg.model.num_layers = 32
    assert num_floating_point_operations(cfg) == 421645529382912


def test_the_other_conventions_are_the_plan():
    moments = (2, 8192 + 4096, 8192**2 + 4096**2)
    for convention in ("exact", "executed"):
        plan = compile_plan(LLAMA3_8B, convention)
        assert num_floating_point_operations(LLAMA3_8B, *moments, convention=convention) == plan.flops([8192, 4096])


class SelfPriced(SimpleNamespace):
    def _get_num_floating_point_operations(self, batch_size):
        return 7 * batch_size


class SelfPricedAtRuntime(SelfPriced):
    def _get_num_floating_point_operations_with_runtime_stats(
        self, *, batch_size, seqlen_sum, seqlen_squared_sum, cross_seqlen_sum, cross_seqlen_product_sum
    ):
        return (batch_size, seqlen_sum, seqlen_squared_sum, cross_seqlen_sum, cross_seqlen_product_sum)


def test_models_that_price_themselves():
    assert num_floating_point_operations(SimpleNamespace(model=SelfPriced(**LLAMA3_8B)), 3) == 21
    cfg = SimpleNamespace(model=SelfPricedAtRuntime(**LLAMA3_8B))
    assert num_floating_point_operations(cfg, 3, 10, 40, 0, 5, 6) == (3, 10, 40, 5, 6)
    cfg.peft = SimpleNamespace(dim=8, target_modules=["linear_qkv"])
    assert num_floating_point_operations(cfg) == compile_plan(
        {"model": LLAMA3_8B, "peft": {"kind": "lora", "dim": 8, "target_modules": ["linear_qkv"]}}
    ).evaluate([8192, 8192**2])


def test_what_is_not_counted_is_said_once(caplog):
    cfg = SimpleNamespace(model=SimpleNamespace(**LLAMA3_8B), peft=SimpleNamespace(prefix_length=20))
    for _ in range(2):
        assert num_floating_point_operations(cfg) == 421645529382912
        cfg.model.seq_length = 8192.0  # read anew
        cfg.model.seq_length = 8192
    (record,) = caplog.records
    assert record.getMessage().startswith("num_floating_point_operations: peft: SimpleNamespace has no dim")
    # Priced in full, a model that prices itself does so.
    assert num_floating_point_operations(SimpleNamespace(model=SelfPriced(**LLAMA3_8B), peft=cfg.peft), 3) == 21


def test_errors():
    with pytest.raises(ConfigError, match="batch_size=-1"):
        num_floating_point_operations(LLAMA3_8B, -1)
    with pytest.raises(ConfigError, match="model.seq_length is missing"):
        num_floating_point_operations({key: value for key, value in LLAMA3_8B.items() if key != "seq_length"})
    with pytest.raises(
        ConfigError, match="convention='folklore' is not known; choose one of megatron, maxtext, exact, executed, palm"
    ):
        num_floating_point_operations(LLAMA3_8B, convention="folklore")


def numbers(*values):
    """The same numbers as other libraries hold them."""
    yield from ([kind(value) for value in values] for kind in (int, float, Fraction, Decimal, np.int64, np.int32, np.float64))
    yield from (
        [kind(value) for value in values] for kind in (torch.tensor, np.array, lambda value: torch.tensor([float(value)]))
    )


def test_numbers_of_any_library_give_the_same_int():
    cfg = {"model": LLAMA3_8B | {"vision_config": TOWER}}
    with_images = num_floating_point_operations(cfg, 2, 10000, 60000000, 2050)
    for batch_size, total, squares, patches in numbers(2, 10000, 60000000, 2050):
        found = num_floating_point_operations(cfg, batch_size, total, squares, patches)
        assert found == with_images
        assert type(found) is int
        assert vit_flops(cfg, batch_size, patches) == vit_flops(cfg, 2, 2050)
        assert type(vit_flops(cfg, batch_size, patches)) is int
    # A batch that leaves int64: 1,024 sequences of 8,192 tokens, numpy's own products wrap around.
    expected = 1024 * num_floating_point_operations(LLAMA3_8B)
    assert num_floating_point_operations(LLAMA3_8B, np.int32(1024), np.int64(2**23), np.int64(2**36)) == expected
    assert num_floating_point_operations(LLAMA3_8B, np.int32(1024)) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 1.5}, "batch_size=1.5 must be a whole number"),
        ({"batch_size": None}, "batch_size=None must be a finite number"),
        ({"batch_size": True}, "batch_size=True must be a finite number"),
        ({"batch_size": "4"}, "batch_size='4' must be a finite number"),
        ({"batch_size": np.int64(-1)}, "must not be negative"),
        ({"batch_size": 0, "seqlen_sum": 100}, "batch_size=0 with seqlen_sum=100 is impossible"),
        ({"batch_size": 0, "num_vision_patches": 100}, "batch_size=0 with .*=100 is impossible"),
        ({"seqlen_sum": -5}, "seqlen_sum=-5 must not be negative"),
        ({"seqlen_sum": float("nan")}, "seqlen_sum=nan must be a finite number"),
        ({"seqlen_sum": float("inf"), "seqlen_squared_sum": 4}, "seqlen_sum=inf must be a finite number"),
        ({"seqlen_sum": "100"}, "seqlen_sum='100' must be a finite number"),
        ({"seqlen_sum": [100]}, r"seqlen_sum=\[100\] must be a finite number"),
        ({"seqlen_sum": torch.ones(2)}, "must be a finite number"),
        ({"seqlen_sum": 100, "seqlen_squared_sum": 99}, "seqlen_squared_sum=99 is impossible for seqlen_sum=100"),
        ({"seqlen_sum": 100, "seqlen_squared_sum": 10001}, "seqlen_squared_sum=10001 is impossible for seqlen_sum=100"),
        ({"seqlen_sum": 100, "seqlen_squared_sum": -1}, "seqlen_squared_sum=-1 must not be negative"),
        ({"seqlen_sum": 100, "seqlen_squared_sum": float("nan")}, "seqlen_squared_sum=nan must be a finite number"),
        ({"seqlen_sum": 100, "seqlen_squared_sum": 10**5000}, "<int> is impossible for seqlen_sum=100"),
        ({"num_vision_patches": -4}, "num_vision_patches=-4 must not be negative"),
        ({"num_vision_patches": None}, "num_vision_patches=None must be a finite number"),
        ({"cross_seqlen_sum": -1}, "cross_seqlen_sum=-1 must not be negative"),
        ({"cross_seqlen_sum": 5, "cross_seqlen_product_sum": -1}, "cross_seqlen_product_sum=-1 must not be negative"),
        ({"cross_seqlen_sum": "x"}, "cross_seqlen_sum='x' must be a finite number"),
    ],
)
def test_sums_that_no_lengths_have_get_one_sentence(arguments, sentence):
    for cfg in (LLAMA3_8B, {"model": LLAMA3_8B | {"vision_config": TOWER}}):
        with pytest.raises(ConfigError, match=sentence) as caught:
            num_floating_point_operations(cfg, **arguments)
        assert "\n" not in str(caught.value)
    priced = SimpleNamespace(model=SelfPricedAtRuntime(**LLAMA3_8B))
    if min(map(len, arguments)) > len("seqlen_sum") and "impossible" not in sentence and "vision" not in sentence:
        with pytest.raises(ConfigError, match=sentence):
            num_floating_point_operations(priced, **arguments)


def test_sums_at_their_bounds():
    """Rows of packed data: the squares of one row may lie anywhere between those of single tokens and of one sequence."""
    plan = compile_plan(LLAMA3_8B)
    for squares in (100, 5000, 10000):
        assert num_floating_point_operations(LLAMA3_8B, 1, 100, squares) == plan.evaluate([100, squares])
    assert num_floating_point_operations(LLAMA3_8B, 0, 0, 0) == num_floating_point_operations(LLAMA3_8B, 0) == 0
    assert num_floating_point_operations(LLAMA3_8B, 3, 0, 0) == 0
    assert num_floating_point_operations(LLAMA3_8B, 1, 1.5, 2.25) == plan.evaluate([Fraction(3, 2), Fraction(9, 4)])


# ---- packed fine-tuning files ----------------------------------------------------------------------------------

ROWS = [
    {"input_ids": list(range(12)), "loss_mask": [1] * 12, "seq_start_id": [0, 5]},
    {"input_ids": list(range(7)), "loss_mask": [1] * 7, "seq_start_id": [0]},
    {"input_ids": list(range(9)), "loss_mask": [1] * 9, "seq_start_id": [0, 2, 6]},
]
#: Lengths without the last token of each sequence: (4, 6), (6), (1, 3, 2).
EVERY_ROW = (2, Fraction(22, 3), Fraction(102, 6), Fraction(102, 3))
FIRST_TWO = (Fraction(3, 2), 8, Fraction(88, 3), 44)


@pytest.fixture
def packed(tmp_path):
    np.save(tmp_path / "training_4096.npy", np.array(ROWS, dtype=object), allow_pickle=True)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "training_4096.idx.parquet")
    (tmp_path / "shards").mkdir()
    for i, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "shards" / f"{i}.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["training_4096.npy", "training_4096.idx.parquet", "shards", "shards/*.parquet"])
def test_averages_of_packed_files(packed, name):
    assert flop_utils.calculate_avg_seqlen(str(packed / name), 1, 4096, drop_remainder=True) == EVERY_ROW
    assert flop_utils.calculate_avg_seqlen(str(packed / name), 2, 4096, drop_remainder=True) == FIRST_TWO
    assert flop_utils.calculate_avg_seqlen(str(packed / name), 2, 4096, drop_remainder=False) == EVERY_ROW
    with pytest.raises(ConfigError, match="3 rows do not fill a global batch of 8"):
        flop_utils.calculate_avg_seqlen(str(packed / name), 8, 4096, drop_remainder=True)


def fine_tune(path, **dataset):
    return SimpleNamespace(
        model=SimpleNamespace(**LLAMA3_8B),
        peft=SimpleNamespace(kind="lora", dim=8, target_modules=["linear_qkv", "linear_fc1"]),
        train=SimpleNamespace(global_batch_size=2),
        dataset=SimpleNamespace(
            packed_sequence_specs=SimpleNamespace(packed_train_data_path=path, packed_sequence_size=4096), **dataset
        ),
    )


def test_the_table_serves_lora_without_runtime_sums(packed, monkeypatch):
    cache = flop_utils._lora_seq_stats_cache
    cache.clear()
    cfg = fine_tune(str(packed / "training_4096.npy"))
    plan = compile_plan(cfg)
    expected = plan.evaluate([2 * 8, 2 * 44])
    assert num_floating_point_operations(cfg, 2) == expected
    assert list(cache.values()) == [FIRST_TWO]
    monkeypatch.setattr(flop_utils, "calculate_avg_seqlen", lambda *args, **kwargs: pytest.fail("read twice"))
    assert num_floating_point_operations(cfg, 2) == expected
    # runtime sums win, and without PEFT the file is not looked at
    assert num_floating_point_operations(cfg, 2, 100, 5000) == plan.evaluate([100, 5000])
    cfg.peft = None
    assert num_floating_point_operations(cfg, 1) == 421645529382912
    # a file that has changed is read again
    cfg = fine_tune(str(packed / "training_4096.npy"))
    np.save(packed / "training_4096.npy", np.array(ROWS[::-1], dtype=object), allow_pickle=True)
    monkeypatch.setattr(flop_utils, "calculate_avg_seqlen", lambda *args, **kwargs: (1, 5, 25, 25))
    assert num_floating_point_operations(cfg, 2) == plan.evaluate([10, 50])
    # Rows of 1 and 9 sequences: the mean of the rows' squares is larger than the square of their mean, and right.
    cache.clear()
    monkeypatch.setattr(flop_utils, "calculate_avg_seqlen", lambda *args, **kwargs: (1, 5, 25, 26))
    assert num_floating_point_operations(cfg, 1) == plan.evaluate([5, 26])
    assert num_floating_point_operations(cfg, 0) == 0


def test_the_file_is_found_under_the_dataset_root(packed):
    folder = packed / "root" / "packed" / "llama"
    folder.mkdir(parents=True)
    cfg = fine_tune(None, dataset_root=str(packed / "root"))
    plan = compile_plan(cfg)
    assert num_floating_point_operations(cfg) == plan.evaluate([8192, 8192**2])
    (packed / "training_4096.npy").rename(folder / "training_4096.npy")
    assert num_floating_point_operations(cfg, 2) == plan.evaluate([16, 88])


class Hostile:
    def __reduce__(self):
        return (print, ("owned",))


def test_hostile_and_torn_files_are_refused(tmp_path, capsys):
    np.save(tmp_path / "hostile.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "numbers.npy", np.arange(3))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "hostile.npy").read_bytes()[:-20])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(ROWS))
    for name, message in {
        "hostile.npy": "it holds builtins.print",
        "numbers.npy": "it is not an array of pickled rows",
        "torn.npy": "cannot be read",
        "torn.parquet": "cannot be read",
        "plain.npy": "cannot be read",
        "absent.npy": "does not exist",
        "rows.csv": "does not exist",
    }.items():
        with pytest.raises(ConfigError, match=message):
            flop_utils.calculate_avg_seqlen(str(tmp_path / name), 1, 4096, True)
    assert "owned" not in capsys.readouterr().out
