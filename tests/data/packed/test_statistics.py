"""Tables are exact for every plan, whatever the format, the shards and the batch size; sidecars only save time."""

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.packed import progress, sidecar, statistics
from bridge.data.packed.files import identify_all, shards_of
from bridge.data.packed.statistics import SequenceTable, calculate_avg_seqlen
from bridge.flops import ConfigError, compile_plan
from tests.data.packed.packed_data import SAVE, averages, input_lengths, pack, save_npy, save_parquet

MODEL = {
    "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512, "seq_length": 64,
    "window_size": 12, "interleaved_attn_pattern": (1, 1),
}  # fmt: skip
PACKS = [[5, 7], [7], [2, 40, 3], [1], [30, 1, 1], [25, 1, 13], [9, 9]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def computed(monkeypatch):
    """The tables computed, not read from a sidecar."""
    calls = []
    tabulate = statistics._tabulate
    monkeypatch.setattr(statistics, "_tabulate", lambda *args: calls.append(args[0]) or tabulate(*args))
    return calls


def sidecars(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name.startswith("."))


# ---- exactness ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    packs=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=12),
    batch=st.integers(1, 5),
    drop=st.booleans(),
    at_a_time=st.integers(1, 400),
)
def test_tables_are_the_sums_over_the_rows(tmp_path_factory, packs, batch, drop, at_a_time):
    folder = tmp_path_factory.mktemp("rows")
    kept = packs[: len(packs) // batch * batch] if drop else packs
    plans = [compile_plan(MODEL, convention) for convention in ("megatron", "exact", "executed", "maxtext")]
    for ending, save in SAVE.items():
        save(folder / f"rows.{ending}", [pack(lengths) for lengths in packs])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bridge.data.packed.parquet._TOKENS_AT_A_TIME", at_a_time)
            patch.setattr("bridge.data.packed.jsonl._ROWS_AT_A_TIME", at_a_time)
            if not kept:
                with pytest.raises(ConfigError, match="do not fill a global batch"):
                    calculate_avg_seqlen(str(folder / f"rows.{ending}"), batch, 64, drop)
                continue
            table = calculate_avg_seqlen(str(folder / f"rows.{ending}"), batch, 64, drop)
        assert table == averages(kept)
        for plan in plans:
            assert [table.sum(statistic) for statistic in plan.statistics] == plan.measure(input_lengths(kept))


def test_windows_are_in_the_plans():
    """The comparison above is about more than lengths and squares."""
    names = {statistic.name for statistic in compile_plan(MODEL, "exact").statistics}
    assert {"causal_pairs", "window_pairs[12]"} <= names


@pytest.mark.parametrize("kind", ["parquet", "npy", "jsonl"])
def test_shards_are_one_file_after_the_other(tmp_path, kind):
    for i, lengths in enumerate(PACKS):
        SAVE[kind](tmp_path / f"part-{i}.{kind}", [pack(lengths)])
    for dataset_file in (tmp_path, f"{tmp_path}/", tmp_path / f"*.{kind}", tmp_path / f"part-[0-9].{kind}"):
        assert calculate_avg_seqlen(str(dataset_file), 3, 64, True) == averages(PACKS[:6])
        assert calculate_avg_seqlen(str(dataset_file), 3, 64, False) == averages(PACKS)


def test_a_hundred_thousand_rows_of_parquet(tmp_path):
    rng = np.random.default_rng(1)
    per_row = rng.integers(1, 9, 100_003)
    tokens = rng.integers(1, 65, int(per_row.sum()))
    bounds = np.append(0, np.cumsum(per_row))
    totals = np.add.reduceat(tokens, bounds[:-1])
    starts = np.cumsum(tokens) - tokens
    starts -= np.repeat(starts[bounds[:-1]], per_row)
    columns = {
        "input_ids": pa.ListArray.from_arrays(np.append(0, np.cumsum(totals)).astype(np.int32), np.zeros(totals.sum(), np.int32)),
        "seq_start_id": pa.ListArray.from_arrays(bounds.astype(np.int32), starts),
    }
    path = tmp_path / "training_512.idx.parquet"
    pq.write_table(pa.table(columns), path)
    table = calculate_avg_seqlen(str(path), 8, 512, True)
    kept = tokens[: bounds[100_000]].astype(object) - 1
    assert table.rows == 100_000
    assert table == (
        Fraction(len(kept), 100_000),
        Fraction(sum(kept), 100_000),
        Fraction(sum(kept * kept), len(kept)),
        Fraction(sum(kept * kept), 100_000),
    )
    assert (tmp_path / sidecars(tmp_path)[0]).stat().st_size < 10_000


def test_files_with_nothing_to_count(tmp_path):
    save_npy(tmp_path / "rows.npy", [])
    save_parquet(tmp_path / "empty.parquet", [{"input_ids": [], "loss_mask": [], "seq_start_id": []}])
    with pytest.raises(ConfigError, match="holds no sequences in 0 rows"):
        calculate_avg_seqlen(str(tmp_path / "rows.npy"), 1, 64, True)
    with pytest.raises(ConfigError, match="holds no sequences in 1 rows"):
        calculate_avg_seqlen(str(tmp_path / "empty.parquet"), 1, 64, True)
    for wrong in (0, -1, 2.0, True, None):
        with pytest.raises(ConfigError, match=f"train.global_batch_size={wrong} must be a positive integer"):
            calculate_avg_seqlen(str(tmp_path / "rows.npy"), wrong, 64, True)
    assert sidecars(tmp_path) == []


# ---- the sidecar -------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    save_npy(tmp_path / "rows.npy", [pack(lengths) for lengths in PACKS])
    return tmp_path / "rows.npy"


def test_the_next_start_reads_the_sidecar(dataset, computed):
    first = calculate_avg_seqlen(str(dataset), 2, 64, True)
    again = calculate_avg_seqlen(str(dataset), 2, 64, True)
    assert again == first == averages(PACKS[:6])
    assert dict(again.lengths) == dict(first.lengths)
    assert again.rows == first.rows == 6
    assert len(computed) == 1
    assert sidecars(dataset.parent) == [".rows.npy.sequence-stats.json"]
    # Every key has its own table, and the file keeps the latest ones.
    for batch in range(1, 7):
        for drop in (True, False):
            for length in (64, 128):
                calculate_avg_seqlen(str(dataset), batch, length, drop)
    assert len(computed) == 24
    tables = json.loads((dataset.parent / ".rows.npy.sequence-stats.json").read_text())["tables"]
    assert len(tables) == sidecar.CAPACITY
    assert calculate_avg_seqlen(str(dataset), 6, 128, False) == averages(PACKS)
    assert len(computed) == 24


def test_a_changed_file_is_noticed(dataset, computed):
    calculate_avg_seqlen(str(dataset), 1, 64, True)
    save_npy(dataset, [pack(lengths) for lengths in PACKS[::-1]])  # as many bytes as before, and at once
    assert calculate_avg_seqlen(str(dataset), 2, 64, True) == averages(PACKS[::-1][:6])
    save_npy(dataset, [pack([8])])
    assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages([[8]])
    assert len(computed) == 3


def test_a_moved_dataset_keeps_its_sidecar(dataset, computed):
    first = calculate_avg_seqlen(str(dataset), 1, 64, True)
    moved = dataset.parent.rename(dataset.parent.with_name("elsewhere"))
    assert calculate_avg_seqlen(str(moved / "rows.npy"), 1, 64, True) == first
    assert len(computed) == 1


def test_a_new_shard_is_noticed(tmp_path, computed):
    for i, lengths in enumerate(PACKS[:2]):
        save_parquet(tmp_path / f"{i}.parquet", [pack(lengths)])
    assert calculate_avg_seqlen(tmp_path, 1, 64, True) == averages(PACKS[:2])
    save_parquet(tmp_path / "2.parquet", [pack(PACKS[2])])
    assert calculate_avg_seqlen(str(tmp_path), 1, 64, True) == averages(PACKS[:3])
    assert len(computed) == 2


def test_damaged_sidecars_are_ignored_and_written_again(dataset, computed):
    expected = calculate_avg_seqlen(str(dataset), 1, 64, True)
    sidecar = dataset.parent / ".rows.npy.sequence-stats.json"
    good = sidecar.read_text()
    content = json.loads(good)
    other_version = content | {"version": 99}
    wrong = content | {"tables": [content["tables"][0] | {"rows": 3}]}  # a lie without the checksum of a lie
    damaged = [
        "", "[]", "null", good[:-20], good[1:], "\0" * 200, "[" * 100_000, '{"crc32": 0}',
        json.dumps(other_version), json.dumps(wrong),
    ]  # fmt: skip
    for number, text in enumerate(damaged, 2):
        sidecar.write_text(text)
        assert calculate_avg_seqlen(str(dataset), 1, 64, True) == expected
        assert len(computed) == number
        assert sidecar.read_text() == good
    sidecar.unlink()
    sidecar.mkdir()  # not even a file
    assert calculate_avg_seqlen(str(dataset), 1, 64, True) == expected


def test_a_file_that_changes_while_it_is_read_leaves_no_sidecar(dataset, monkeypatch):
    tabulate = statistics._tabulate

    def slow(*args):
        table = tabulate(*args)
        save_npy(dataset, [pack([3])])
        return table

    monkeypatch.setattr(statistics, "_tabulate", slow)
    assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages(PACKS)
    assert sidecars(dataset.parent) == []


def as_nobody():
    """Root may write everywhere; somebody else may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("cache", ["writable", "read-only"])
def test_a_read_only_folder_is_no_error(monkeypatch, computed, cache):
    with tempfile.TemporaryDirectory() as name:
        folder, caches = Path(name, "data"), Path(name, "cache")
        folder.mkdir()
        caches.mkdir()
        save_npy(folder / "rows.npy", [pack(lengths) for lengths in PACKS])
        caches.chmod(0o777 if cache == "writable" else 0o555)
        folder.chmod(0o555)
        Path(name).chmod(0o755)
        monkeypatch.setenv("BRIDGE_CACHE_DIR", str(caches))
        user = os.geteuid()
        try:
            as_nobody()
            for _ in range(2):
                assert calculate_avg_seqlen(str(folder / "rows.npy"), 1, 64, True) == averages(PACKS)
            found = len(list(caches.iterdir()))
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert sidecars(folder) == []
        assert (found, len(computed)) == ((1, 1) if cache == "writable" else (0, 2))


def test_a_full_disk_costs_time_only(dataset, monkeypatch, computed):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sidecar, "store", full)
    for _ in range(2):
        assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages(PACKS)
    assert len(computed) == 2
    assert sidecars(dataset.parent) == []


# ---- many processes ----------------------------------------------------------------------------------

WORKER = """
import os, sys, time
from bridge.data.packed import statistics

def logged(*args, tabulate=statistics._tabulate):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    return tabulate(*args)

statistics._tabulate = logged
print("ready", flush=True)
sys.stdin.readline()
table = statistics.calculate_avg_seqlen(sys.argv[1], 4, 4096, True)
print([str(average) for average in table], sum(table.lengths.values()))
"""


def start(dataset, log):
    command = [sys.executable, "-c", WORKER, str(dataset), str(log)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
def test_eight_processes_at_once_compute_one_table(tmp_path):
    packs = [[400, 1200, 30 + i % 700] for i in range(2001)]
    (tmp_path / "data").mkdir()
    dataset, log = tmp_path / "data" / "rows.npy", tmp_path / "log"
    save_npy(dataset, [pack(lengths) for lengths in packs])
    sidecar = tmp_path / "data" / ".rows.npy.sequence-stats.json"
    for damaged in (None, '{"crc32": 1'):
        if damaged is not None:
            sidecar.write_text(damaged)
        log.write_text("")
        processes = [start(dataset, log) for _ in range(8)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = {process.communicate()[0] for process in processes}
        assert [process.returncode for process in processes] == [0] * 8
        assert answers == {f"{[str(average) for average in averages(packs[:2000])]} 6000\n"}
        assert len(log.read_text().split()) == 1
        assert sidecars(tmp_path / "data") == [sidecar.name]


@pytest.mark.slow
def test_a_process_that_dies_leaves_no_lock_behind(dataset, computed):
    hold = (
        "import sys, time; from pathlib import Path; from bridge.data.packed import sidecar\n"
        "with sidecar.try_lock(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    time.sleep(600)"
    )
    place = sidecar.candidates(str(dataset), identify_all(shards_of(str(dataset))))[0]
    process = subprocess.Popen([sys.executable, "-c", hold, str(place)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "True\n"
    with sidecar.try_lock(place) as mine:
        assert not mine
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sidecars(dataset.parent) == [f"{place.name}.lock"]
    assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages(PACKS)
    assert sidecars(dataset.parent) == [place.name]


def test_waiting_ends(dataset, monkeypatch, computed):
    monkeypatch.setattr(statistics, "PATIENCE_S", 0.1)
    place = sidecar.candidates(str(dataset), identify_all(shards_of(str(dataset))))[0]
    with sidecar.try_lock(place) as mine:
        assert mine
        assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages(PACKS)
    assert len(computed) == 1


def test_file_systems_without_locks(dataset, monkeypatch, computed):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    for _ in range(2):
        assert calculate_avg_seqlen(str(dataset), 1, 64, True) == averages(PACKS)
    assert len(computed) == 1
    assert sidecars(dataset.parent) == [".rows.npy.sequence-stats.json"]


# ---- the progress bar --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "delay", "shown"), [("0", 0, True), ("1", 0, False), ("0", 60, False)])
def test_the_progress_bar(dataset, monkeypatch, rank, delay, shown):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "DELAY_S", delay)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        calculate_avg_seqlen(str(dataset), 1, 64, True)
        print("end", file=terminal, flush=True)
        time.sleep(0.05)
        output = os.read(ours, 100_000).decode()
    os.close(ours)
    assert ("Reading rows.npy" in output) is shown
    assert "end" in output


def test_no_progress_bar_in_a_log(dataset, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY_S", 0)
    calculate_avg_seqlen(str(dataset), 1, 64, True)
    assert capsys.readouterr() == ("", "")


def test_a_table_is_a_tuple_of_averages():
    table = SequenceTable(2, {3: 4, 5: 1})
    assert table == (Fraction(5, 2), Fraction(17, 2), Fraction(61, 5), Fraction(61, 2))
    per_row, tokens, squares, squares_per_row = table
    assert per_row * squares == squares_per_row
