"""Which file a configuration means: found once, watched with one stat per shard, and every change noticed."""

import glob
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.data.packed import files
from bridge.data.packed.files import Locator, Shard, identify, shards_of
from bridge.flops import ConfigError


def config(path=None, root=None, size=512, **model):
    specs = SimpleNamespace(packed_train_data_path=path, packed_sequence_size=size)
    return SimpleNamespace(
        model=SimpleNamespace(**model), dataset=SimpleNamespace(dataset_root=root, packed_sequence_specs=specs)
    )


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def looks(monkeypatch):
    """Every look at the file system, by kind."""
    seen = []

    def counted(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: seen.append(name) or original(*args, **kwargs))

    for owner, name in ((os, "stat"), (os, "scandir"), (os, "listdir"), (Path, "glob"), (Path, "exists"), (glob, "glob")):
        counted(owner, name)
    return seen


# ---- shards ------------------------------------------------------------------------------------------


def test_what_a_path_stands_for(tmp_path):
    names = [
        "b.parquet",
        "a.parquet",
        "corpus.idx",
        "corpus.bin",
        "rows.npy",
        "rows.jsonl",
        "c.pq",
        "text.txt",
        ".hidden.parquet",
    ]
    for name in names:
        write(tmp_path / name)
    for given, expected in {
        "": ["a.parquet", "b.parquet"],
        "rows.npy": ["rows.npy"],
        "rows.jsonl": ["rows.jsonl"],
        "corpus": ["corpus.idx"],
        "corpus.bin": ["corpus.idx"],
        "corpus.idx": ["corpus.idx"],
        "corpus.*": ["corpus.idx"],
        "[ab].parquet": ["a.parquet", "b.parquet"],
        "*.p*q*": ["a.parquet", "b.parquet", "c.pq"],
    }.items():
        assert shards_of(f"{tmp_path}/{given}") == [f"{tmp_path}/{name}" for name in expected]
    odd = write(tmp_path / "odd [1]*" / "rows.npy")
    assert shards_of(str(odd)) == shards_of(str(odd.parent)) == [str(odd)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.npy", "absent.npy does not exist; check dataset.packed_sequence_specs.packed_train_data_path"),
        ("corpus.bin", "corpus.idx does not exist"),
        ("*.npy", r"\*.npy matches no file ending in .parquet"),
        ("empty", "empty matches no file ending in .parquet"),
        ("text.txt", "text.txt must end in .parquet, .pq, .npy, .idx, .jsonl or .bin"),
        ("text*", "text.txt must end in"),
    ],
)
def test_paths_that_stand_for_nothing(tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "text.txt")
    with pytest.raises(ConfigError, match=message):
        shards_of(str(tmp_path / given))


# ---- from a configuration ----------------------------------------------------------------------------


def test_configurations_without_a_packed_file(tmp_path):
    locate = Locator()
    for cfg in (
        {},
        {"dataset": {}},
        {"dataset": {"packed_sequence_specs": None, "dataset_root": str(tmp_path)}},
        config(),
        config(root=str(tmp_path), size=-1),
        config(root=str(tmp_path), size=None),
        config(root=str(tmp_path)),
    ):
        assert locate(cfg) is None


@pytest.mark.parametrize("root", ["dataset_root", "hf_output_root"])
def test_the_later_names_of_megatron_bridge(tmp_path, root):
    path = write(tmp_path / "packed" / "run" / "training_512.npy")
    specs = SimpleNamespace(packed_train_data_path=None, packed_sequence_size=512)
    dataset = SimpleNamespace(enable_offline_packing=True, offline_packing_specs=specs, **{root: str(tmp_path)})
    assert Locator()({"dataset": dataset}).dataset_file == str(path)
    dataset.enable_offline_packing = False
    assert Locator()({"dataset": dataset}) is None


def test_a_named_file_costs_one_stat_a_step(tmp_path, looks):
    path = write(tmp_path / "rows.npy")
    locate, cfg = Locator(), config(path)  # a Path, as Megatron-Bridge makes them
    first = locate(cfg)
    assert first.dataset_file == str(path)
    assert first.shards == (Shard(str(path), 1, path.stat().st_mtime_ns),)
    looks.clear()
    for _ in range(5):
        assert locate(cfg) is first
    assert looks == ["stat"] * 5
    write(path, "yy")
    assert locate(cfg).shards[0].size == 2


def test_the_file_under_the_dataset_root_is_looked_for_once(tmp_path, looks):
    locate = Locator()
    cfg = config(root=tmp_path, size=512)
    assert locate(cfg) is None
    looks.clear()
    assert locate(cfg) is None
    assert looks == ["stat"] * 2  # the root and its folder of packed data, where something new would show
    npy = write(tmp_path / "packed" / "llama" / "training_512.npy")
    write(tmp_path / "packed" / "a" / "training_1024.idx.parquet")
    assert locate(cfg).dataset_file == str(npy)
    looks.clear()
    assert locate(cfg).dataset_file == str(npy)
    assert looks == ["stat"]
    # A file that comes later is not looked for again, unless the one in use goes.
    parquet = write(tmp_path / "packed" / "z" / "training_512.idx.parquet")
    assert locate(cfg).dataset_file == str(npy)
    assert Locator()(cfg).dataset_file == str(parquet)
    npy.unlink()
    assert locate(cfg).dataset_file == str(parquet)
    # model.seq_length stands in for a pack size that is not given.
    assert locate(config(root=tmp_path, size=None, seq_length=1024)).dataset_file.endswith("training_1024.idx.parquet")


def test_folders_and_globs_are_watched(tmp_path, looks):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet")
    for path in (tmp_path, tmp_path / "*.parquet"):
        locate, cfg = Locator(), config(str(path))
        before = locate(cfg)
        assert [Path(shard.path).name for shard in before.shards][:2] == ["a.parquet", "b.parquet"]
        looks.clear()
        assert locate(cfg) is before
        assert looks == ["stat"] * (len(before.shards) + 1)
        write(tmp_path / f"new{len(before.shards)}.parquet")
        assert len(locate(cfg).shards) == len(before.shards) + 1
        write(tmp_path / "b.parquet", "longer" * len(before.shards))
        assert locate(cfg).shards[1].size == 6 * len(before.shards)


def test_many_shards_are_looked_at_now_and_then(tmp_path, looks, monkeypatch):
    for number in range(files.MANY + 1):
        write(tmp_path / f"{number:03}.parquet")
    locate, cfg = Locator(), config(str(tmp_path))
    locate(cfg)
    write(tmp_path / "000.parquet", "changed")
    looks.clear()
    assert locate(cfg).shards[0].size == 1
    assert looks == []
    monkeypatch.setattr(files, "PATIENCE_S", 0)
    assert locate(cfg).shards[0].size == 7


def test_a_file_that_is_missing_is_said_once_and_found_later(tmp_path, caplog, monkeypatch):
    path = tmp_path / "later.npy"
    locate, cfg = Locator(), config(str(path))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert locate(cfg) is None
            assert Locator()(cfg) is None
    assert [record.message for record in caplog.records] == [
        f"dataset.packed_sequence_specs.packed_train_data_path={path} does not exist: "
        "every row counts with model.seq_length tokens instead"
    ]
    write(path)
    assert locate(cfg).dataset_file == str(path)
    path.unlink()
    assert locate(cfg) is None
    # A glob that matches nothing cannot be watched, so it is tried again after a while.
    pattern = config(str(tmp_path / "*" / "*.npy"))
    assert locate(pattern) is None
    found = write(tmp_path / "new" / "rows.npy")
    assert locate(pattern) is None
    monkeypatch.setattr(files, "PATIENCE_S", 0)
    assert locate(pattern).shards[0].path == str(found)


def test_two_changes_within_a_tick_of_the_clock_are_told_apart(tmp_path, monkeypatch):
    """As if the file system kept time in steps of a tick."""
    real = os.stat

    def coarse(path, *args, **kwargs):
        stat = real(path, *args, **kwargs)
        tick = files.TICK_NS
        return SimpleNamespace(st_size=stat.st_size, st_mtime_ns=stat.st_mtime_ns // tick * tick, st_mode=stat.st_mode)

    monkeypatch.setattr(files.os, "stat", coarse)
    path = write(tmp_path / "rows.npy", "a")
    for content in "bcdef":
        before = files.identify_all([str(path)])[0]
        path.write_text(content)
        assert identify(str(path)) != before


def test_only_the_latest_configurations_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TICK_NS", 0)
    locate = Locator()
    for number in range(3 * files.CAPACITY):
        locate(config(str(write(tmp_path / f"{number}.npy"))))
    assert len(locate._known) == files.CAPACITY
