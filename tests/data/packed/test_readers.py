"""Every format gives the lengths that were written, and nothing that is torn, hostile or something else passes."""

import json
import pickle
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.packed.files import read_rows
from bridge.data.packed.pickle import RowReader
from bridge.data.packed.rows import Rows
from bridge.flops import ConfigError
from tests.data.packed.packed_data import SAVE, input_lengths, pack, save_npy

PACKS = [[5, 7], [7], [2, 4, 3], [1], [1, 1, 1], [2500, 1, 1300]]


def lengths_and_rows(path):
    pieces = list(read_rows(str(path)))
    assert all(first.share < then.share for first, then in zip(pieces[:-1], pieces[1:], strict=True))
    assert 0.9 < pieces[-1].share <= 1
    whole = Rows.joined(pieces)
    return whole.lengths.tolist(), whole.sequences.tolist()


@pytest.mark.parametrize("ending", SAVE)
def test_lengths_of_rows(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    SAVE[ending](path, [pack(lengths, 10_000 * i) for i, lengths in enumerate(PACKS)])
    assert lengths_and_rows(path) == (input_lengths(PACKS), [len(lengths) for lengths in PACKS])


@settings(max_examples=25)
@given(packs=st.lists(st.lists(st.integers(1, 300), max_size=6), min_size=1, max_size=12))
def test_lengths_of_any_rows(tmp_path_factory, packs):
    folder = tmp_path_factory.mktemp("rows")
    for ending, save in SAVE.items():
        save(folder / f"rows.{ending}", [pack(lengths) for lengths in packs])
        assert lengths_and_rows(folder / f"rows.{ending}") == (input_lengths(packs), [len(lengths) for lengths in packs])


# ---- pickles -----------------------------------------------------------------------------------------


def read_pickle(content):
    rows = [row for batch in RowReader(content).batches() for row in batch]
    return [(len(row["input_ids"]), list(row["seq_start_id"].values())) for row in rows]


KINDS = {
    "list": list,
    "int64": np.array,
    "big-endian": lambda values: np.array(values, ">i4"),
    "scalars": lambda values: [np.int64(value) for value in values],
    "objects": lambda values: np.array(values, object),
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_pickles_of_every_protocol(protocol, kind):
    rows, kind = [], KINDS[kind]
    for i, lengths in enumerate(PACKS):
        row = pack(lengths, i)
        rows.append(
            {"input_ids": kind(row["input_ids"]), "seq_start_id": kind(row["seq_start_id"]), "loss_mask": row["loss_mask"]}
        )
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    expected = [(sum(lengths), pack(lengths)["seq_start_id"]) for lengths in PACKS]
    assert read_pickle(pickle.dumps(array, protocol=protocol)) == expected


def test_pickles_with_more_in_them():
    """Long texts, nested values, big and negative numbers, the same list and the same row twice, over many frames."""
    shared = list(range(70_000))
    row = {
        "input_ids": shared,
        "seq_start_id": [0, 60_000],
        "text": "ä" * 1000,
        "more": {"a": [1.5, None, True, (1, 2, 3, 4), ()]},
    }
    other = {"input_ids": shared, "seq_start_id": [0], "numbers": [-1, 2**40, -(2**70), 1, [2], {}], "raw": b"x" * 300}
    many = [{"input_ids": [1] * 9, "seq_start_id": [0, 3]} for _ in range(2500)]
    array = np.empty(2503, dtype=object)
    array[:] = [row, other, *many, row]
    expected = [(70_000, [0, 60_000]), (70_000, [0]), *[(9, [0, 3])] * 2500, (70_000, [0, 60_000])]
    for protocol in (3, 4, 5):
        assert read_pickle(pickle.dumps(array, protocol=protocol)) == expected


class Hostile:
    def __init__(self, call, *arguments):
        self.how = call, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (Hostile(print, "owned"), "builtins.print"),
        (Hostile(eval, "print('owned')"), "builtins.eval"),
        (Hostile(pickle.loads, pickle.dumps(Hostile(print, "owned"))), "_pickle.loads"),
        (Hostile(np.load, "/etc/passwd"), "numpy.load"),
        (list, "builtins.list"),
        ({1, 2}, "more than plain data|builtins.set"),
        (np.array(["text"]), "an array of type 'U4'"),
    ],
)
def test_hostile_pickles_are_refused_before_they_run(tmp_path, capsys, protocol, inside, message):
    good = pack([3, 4])
    message = message if protocol >= 3 else ""  # numpy writes no others; names of that time differ
    for rows in ([inside], [good, good | {"more": inside}], [good | {"input_ids": inside}]):
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        with open(tmp_path / "rows.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (len(rows),)})
            pickle.dump(array, file, protocol=protocol)
        with pytest.raises(ConfigError, match=f"rows.npy cannot be read: it holds ({message})"):
            lengths_and_rows(tmp_path / "rows.npy")
    assert "owned" not in capsys.readouterr().out


def test_pickles_torn_anywhere_are_refused(tmp_path):
    save_npy(tmp_path / "rows.npy", [pack([3, 4]), pack([20])])
    content = (tmp_path / "rows.npy").read_bytes()
    for end in range(0, len(content)):
        (tmp_path / "torn.npy").write_bytes(content[:end])
        with pytest.raises(ConfigError, match="torn.npy cannot be read"):
            lengths_and_rows(tmp_path / "torn.npy")


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_pickles_end_in_a_clear_error_or_in_rows(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    save_npy(folder / "rows.npy", [pack([3, 4]), pack([20])])
    content = bytearray((folder / "rows.npy").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "rows.npy").write_bytes(content)
    with suppress(ConfigError):  # anything else fails the test
        lengths_and_rows(folder / "rows.npy")


def test_the_memory_for_pickled_rows_does_not_grow_with_their_tokens(tmp_path):
    save_npy(tmp_path / "rows.npy", [pack([4096, 4096], i) for i in range(120)])
    tracemalloc.start()
    assert lengths_and_rows(tmp_path / "rows.npy") == ([4095, 4095] * 120, [2] * 120)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Built in full, the rows take 120 x 8192 x 2 pointers of 8 bytes, and the token numbers as much again.
    assert peak < 2_000_000


# ---- rows that make no sense -------------------------------------------------------------------------


@pytest.mark.parametrize("ending", SAVE)
@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 5, 4], r"row 1 has 9 input_ids, and its seq_start_id \[0, 5, 4\] must rise from 0"),
        ([2, 5], r"its seq_start_id \[2, 5\] must rise from 0"),
        ([0, 5, 10], r"its seq_start_id \[0, 5, 10\] must rise from 0"),
        ([], r"its seq_start_id \[\] must rise from 0"),
    ],
)
def test_sequences_that_do_not_fill_their_row(tmp_path, ending, starts, message):
    path = tmp_path / f"rows.{ending}"
    SAVE[ending](path, [pack([4]), {"input_ids": [1] * 9, "loss_mask": [True] * 9, "seq_start_id": starts}, pack([3])])
    with pytest.raises(ConfigError, match=message):
        lengths_and_rows(path)


def test_pickled_rows_of_another_kind(tmp_path):
    for rows, message in {
        ((1, 2),): "row 0 is not a dictionary",
        (("input_ids",),): "row 0 is not a dictionary",
    }.items():
        save_npy(tmp_path / "rows.npy", list(rows))
        with pytest.raises(ConfigError, match=message):
            lengths_and_rows(tmp_path / "rows.npy")
    for row, message in (
        ({"input_ids": [1, 2]}, "row 0 is not a dictionary with input_ids and seq_start_id"),
        ({"input_ids": 5, "seq_start_id": [0]}, "of row 0 must be lists or arrays"),
        ({"input_ids": [1, 2], "seq_start_id": [0.5]}, "seq_start_id must hold integers"),
        ({"input_ids": [1, 2], "seq_start_id": [[0]]}, "seq_start_id must hold integers"),
        ({"input_ids": np.ones((2, 2)), "seq_start_id": [0]}, "an array of shape"),
    ):
        save_npy(tmp_path / "rows.npy", [row])
        with pytest.raises(ConfigError, match=message):
            lengths_and_rows(tmp_path / "rows.npy")
    np.save(tmp_path / "rows.npy", np.arange(4))
    with pytest.raises(ConfigError, match="it is not an array of pickled rows"):
        lengths_and_rows(tmp_path / "rows.npy")


# ---- parquet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("group", [1, 2, 1000])
def test_parquet_types_and_row_groups(tmp_path, monkeypatch, kind, group):
    monkeypatch.setattr("bridge.data.packed.parquet._TOKENS_AT_A_TIME", 2000)
    rows = [pack(lengths) for lengths in PACKS]
    schema = pa.schema([("seq_start_id", kind(pa.int32())), ("input_ids", kind(pa.int64()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet", row_group_size=group)
    assert lengths_and_rows(tmp_path / "rows.parquet") == (input_lengths(PACKS), [len(lengths) for lengths in PACKS])


def test_parquet_files_that_are_torn_or_of_another_kind(tmp_path):
    path = tmp_path / "rows.parquet"
    SAVE["parquet"](path, [pack([100, 50], 100 * i) for i in range(100)])
    content = path.read_bytes()
    for torn in (b"", b"PAR1", content[:-1], content[: len(content) // 2], content[4:], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(torn)
        with pytest.raises(ConfigError, match="rows.parquet cannot be read"):
            lengths_and_rows(path)
    for columns, message in (
        ({"input_ids": [[1]]}, "it has no column seq_start_id"),
        ({"text": ["a"]}, "it has no column input_ids and no column seq_start_id"),
        ({"input_ids": [1], "seq_start_id": [[0]]}, "its column input_ids holds int64, not lists"),
        ({"input_ids": [[1], None], "seq_start_id": [[0], [0]]}, "its column input_ids has rows without a value"),
        ({"input_ids": [[1, 2]], "seq_start_id": [[0, None]]}, "seq_start_id must hold integers"),
        ({"input_ids": [[1, 2]], "seq_start_id": [["0"]]}, "seq_start_id must hold integers"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ConfigError, match=message):
            lengths_and_rows(path)


# ---- indexed datasets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Documents of several sequences, written by megatron-core itself."""
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    prefix = tmp_path_factory.mktemp("indexed") / "corpus"
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for lengths in PACKS:
        builder.add_document(torch.zeros(sum(lengths), dtype=torch.int64), lengths)
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_indexed_datasets(indexed, monkeypatch):
    path = f"{indexed}.idx"
    expected = (input_lengths(PACKS), [len(lengths) for lengths in PACKS])
    assert lengths_and_rows(path) == expected
    monkeypatch.setattr("bridge.data.packed.index._ROWS_AT_A_TIME", 2)
    assert lengths_and_rows(path) == expected


def test_torn_indexed_datasets(indexed, tmp_path):
    content, tokens = (indexed.with_suffix(ending).read_bytes() for ending in (".idx", ".bin"))
    path = tmp_path / "corpus.idx"
    for damaged, message in (
        (b"", "not an index file of megatron-core"),
        (b"x" + content[1:], "not an index file of megatron-core"),
        (content[:-1], "it is truncated"),
        (content[:9] + struct.pack("<Q", 2) + content[17:], "version 2"),
        (content[:-8] + struct.pack("<q", 99), "its documents end at sequence 99"),
        (content[:-24] + struct.pack("<q", 99) + content[-16:], "its documents are not in order"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=f"corpus.idx cannot be read: .*{message}"):
            lengths_and_rows(path)
    path.write_bytes(content)
    assert lengths_and_rows(path)  # the tokens may be elsewhere
    path.with_suffix(".bin").write_bytes(tokens[:-1])
    with pytest.raises(ConfigError, match=r"corpus.bin is truncated"):
        lengths_and_rows(path)


# ---- jsonl -------------------------------------------------------------------------------------------


def test_jsonl_with_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.data.packed.jsonl._ROWS_AT_A_TIME", 2)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"lengths": lengths, "id": "x"}) + "\n" for lengths in PACKS))
    assert lengths_and_rows(path) == (input_lengths(PACKS), [len(lengths) for lengths in PACKS])
    path.write_text("\n".join(json.dumps({"length": lengths[0]}) for lengths in PACKS) + "\n\n")
    assert lengths_and_rows(path) == ([lengths[0] - 1 for lengths in PACKS], [1] * len(PACKS))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"lengths": [1, 2]}\n{"lengths": [1,', "line 2 is not valid JSON"),
        ('{"lengths": [1, 2]}\n\n\n[3]', "line 4 is not a JSON object"),
        ('{"text": "a"}', "neither lengths, nor length"),
        ('{"lengths": [1]}\n{"length": 1}', "a row from number 0 on has no field lengths"),
        ('{"lengths": [1]}\n{"lengths": [-1]}', "row 1 has a sequence of -1 tokens"),
        ('{"lengths": [1.5]}', "lengths must hold integers"),
        ('{"lengths": ["1"]}', "lengths must hold integers"),
        ('{"length": true}', "length must hold integers"),
        ('{"lengths": 5}', "cannot be read"),
        ("\xff", "line 1 is not valid JSON"),
    ],
)
def test_jsonl_of_another_kind(tmp_path, lines, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines.encode("latin1"))
    with pytest.raises(ConfigError, match=message):
        lengths_and_rows(path)
