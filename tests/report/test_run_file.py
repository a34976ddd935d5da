"""Files of runs: JSON lines and W&B's own, whole, torn and hostile."""

import json
import math
import random
import struct
import time
import tracemalloc
from array import array
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pytest

from bridge.config import ConfigError
from bridge.metrics.peak import Peak
from bridge.metrics.throughput import Interval, Work, throughput
from bridge.report import run_file, stretches
from bridge.report.facts import notes_of, present, typical
from bridge.report.run_file import read_run


def row(step):
    """What a run logs at a step, by the arithmetic that a run uses."""
    work = Work(steps=10, flops=2 * 10**15 + step, hardware_flops=3 * 10**15, tokens=80_000, positions=100_000, sequences=40)
    interval = Interval(work=work, timed=work, seconds=2.0 + step / 1000, world_size=8, total_flops=step * 2 * 10**14,
                        total_tokens=8000 * step, components={"mlp": 15 * 10**14, "core_attention": 5 * 10**14 + step},
                        peak=Peak(989.4e12), overhead_seconds=0.001)  # fmt: skip
    return {"step": step, **throughput(interval), "lm loss": 5 - step / 1000}


def write(path, rows, end="\n"):
    path.write_text("\n".join(map(json.dumps, rows)) + end)
    return path


def test_json_lines(tmp_path):
    rows = [row(step) for step in range(10, 1001, 10)]
    read = read_run(write(tmp_path / "metrics.jsonl", rows))
    assert read.rows == rows
    assert (read.skipped, read.torn) == (0, False)


def test_parts_of_a_step_become_one_row(tmp_path):
    read = read_run(write(tmp_path / "metrics.jsonl", [{"step": 5, "a": 1}, {"step": 10, "a": 2}, {"step": 5, "b": 3}]))
    assert read.rows == [{"step": 5, "a": 1, "b": 3}, {"step": 10, "a": 2}]


def test_lines_of_one_form_are_read_as_a_parser_reads_them(tmp_path, monkeypatch):
    """Forms that alternate, numbers that are written in every way, ints where there were floats, steps out of order."""
    numbers = random.Random(0)
    values = [0, -3, 2**70, 0.5, -1.5e-7, 1e20, 3.0, 1e300, 1e-300, float("nan"), float("-inf"), 12345678901234567890123, 10**260]
    rows = []
    for step in range(500):
        names = ["a", "b", "c/d e", "f[8]"][: numbers.randint(1, 4)]
        rows.append({"step": step if step % 97 else step // 2, **{name: numbers.choice(values) for name in names}})
    rows += [{"a": 1, "step": 600}, {"step": 601, "g": True, "h": "text"}]
    file = write(tmp_path / "metrics.jsonl", rows)
    fast = read_run(file)
    monkeypatch.setattr(run_file, "_at_once", lambda lines: None)
    monkeypatch.setattr(run_file, "_of_one_form", lambda rows: None)
    slow = read_run(file)
    assert [(key, str(value)) for row in fast.rows for key, value in sorted(row.items())] == [
        (key, str(value)) for row in slow.rows for key, value in sorted(row.items())
    ]
    assert len(fast.rows) == len({row["step"] for row in rows})


def test_a_long_run_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "_BYTES_OF_LINES", 300)
    rows = [{"step": step, "whole": 10**30 + step, "part": step / 7} for step in range(100)]
    read = read_run(write(tmp_path / "metrics.jsonl", rows))
    assert read.rows == rows
    assert type(read.series("part")) is array
    assert read.series("none") == [None] * 100


@pytest.mark.parametrize("rows", [63, 64, 65, 1000, 3001])
def test_a_run_too_long_to_be_held_keeps_extremes_means_and_a_sample(tmp_path, monkeypatch, rows):
    """Against the whole run, which is read beside it: with keys that come late, or seldom, and numbers of all types."""
    for name, value in (("_ROWS", 16), ("_EVERY", 2), ("_MOST", 8)):
        monkeypatch.setattr(stretches, name, value)
    monkeypatch.setattr(run_file, "MOST_HELD", 64)
    monkeypatch.setattr(run_file, "_BYTES_OF_LINES", 700)
    numbers = random.Random(rows)
    lines = []
    for step in range(rows):
        line = {"step": step, "throughput/time/host": numbers.gauss(0, 1e-4), "throughput/mfu": numbers.random()}
        line |= {"total": step << 70} | ({"late": 1} if step > 30 else {})
        lines.append(line | ({"lm loss validation": numbers.random()} if step % 97 == 50 else {}))
    file = write(tmp_path / "metrics.jsonl", lines)
    run, whole = (read_run(file, thinned=thinned) for thinned in (True, False))
    assert whole.rows == lines
    assert run.count == rows
    assert (run.steps[0], run.steps[-1]) == (0, rows - 1)
    assert list(run.steps) == sorted(set(run.steps))
    for key in whole.names():
        every, kept = (list(present(one, key)) for one in (whole, run))
        assert (min(kept), max(kept)) == pytest.approx((min(every), max(every)), rel=1e-11)
        assert {*kept} <= {*every} or key.startswith("throughput/")
    if rows <= 64:
        assert run.whole is None
        return
    assert len(run.steps) <= 16 * (2 + 2 * len(whole.names()) + 2)
    sampled = run.whole.every
    assert [*run.whole.sample["step"]] == [*range(0, rows, sampled)]
    assert run.whole.sample["total"] == [step << 70 for step in range(0, rows, sampled)]
    key = "throughput/time/host"
    assert run.whole.means == {key: pytest.approx(fmean(whole.series(key)), rel=1e-9, abs=1e-15)}
    assert typical(run, "throughput/mfu") == pytest.approx(median(whole.series("throughput/mfu")[::sampled]), rel=1e-11)
    assert any(f"of every {sampled}th row" in note for note in notes_of(run))


@pytest.mark.parametrize(
    "line",
    ['{"step": 2, "a": 1}, {"step": 3, "a": 1}', "7", '{"step": 2, "a": [', "", '{"step": 2, "a": 1e-260}', '{"step": NaN}'],
)
def test_what_is_no_usual_row_is_read_by_itself(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "a": 0.5}}\n{line}\n{{"step": 4, "a": 0.25}}\n')
    read = read_run(file)
    kept = {"step": 2} if "e-260" in line else None
    assert read.rows == [{"step": 1, "a": 0.5}, *([kept] if kept else []), {"step": 4, "a": 0.25}]
    assert read.skipped == (kept is None and line != "")


def test_a_run_is_drawn_with_every_digit_of_a_number(tmp_path):
    rows = [{"step": i, "a": (-1) ** i * math.pi * 10.0**power, "b": 5e-6 / i} for i, power in enumerate(range(-12, 19), 1)]
    assert read_run(write(tmp_path / "metrics.jsonl", rows), thinned=True).rows == rows


def test_a_torn_last_line_and_damaged_rows_are_told(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(row(10)) + '\nno json\n{"a": 1}\n[1]\n{"step": "x"}\n{"step": true}\n{"step": 20, "throughput/mf')
    read = read_run(file)
    assert (len(read.rows), read.skipped, read.torn) == (1, 5, True)
    notes = notes_of(read)
    assert any("killed" in note for note in notes)
    assert any("5 rows" in note for note in notes)


def test_a_model_that_is_not_the_priced_one_is_told(tmp_path):
    said = "output_layer: plan 128,256 x 4,096, model has none"
    for facts, told in (
        ({"verified": "no", "verified_details": [said]}, [f"Doubtful: the built model is not the priced model. {said}."]),
        ({"verified": "parameters", "verified_details": []}, []),
        ({"verified": "no", "verified_details": 5}, []),
    ):
        read = replace(read_run(write(tmp_path / "metrics.jsonl", [{**row(10), "throughput/doubtful": 1}])), facts=facts)
        assert [note for note in notes_of(read) if "priced" in note] == told


def test_numbers_that_are_none_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "a": NaN, "b": Infinity, "c": "3", "d": null, "e": {"f": 1}, "g": 1'
        + "0" * 400
        + ', "i": 1e300, "j": -1e-300, "h": 2}\n'
    )
    assert read_run(file).rows == [{"step": 1, "h": 2}]


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\x00" * 100, b"[" * 100_000, b'{"a": 1}\n', b":W&B", b":W&B\x00\x00\x00" + b"\xff" * 99]
)
def test_files_without_a_run_are_refused(tmp_path, content):
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no rows"):
        read_run(file)


def test_large_files_are_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "metrics.jsonl", [row(1)])
    monkeypatch.setattr(run_file, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="MiB"):
        read_run(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_run(tmp_path / "missing")
    monkeypatch.undo()
    monkeypatch.setattr(run_file, "MAX_ROWS", 3)
    with pytest.raises(ConfigError, match="more than 3 rows"):
        read_run(write(tmp_path / "many.jsonl", [row(i) for i in range(4)]))


# ---- W&B ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    """A real offline run of many blocks, and its rows."""
    wandb = pytest.importorskip("wandb", reason="writes a run with wandb itself")
    folder = tmp_path_factory.mktemp("wandb")
    rows = [row(step) for step in range(10, 6001, 10)]
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    with wandb.init(mode="offline", dir=folder, project="explorer", settings=settings) as offline:
        for one in rows:
            offline.log(one, step=one["step"])
    (file,) = Path(folder).glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while len(read_run(file).rows) < len(rows) and time.monotonic() < deadline:
        time.sleep(0.2)  # W&B's own process writes a little longer
    assert file.stat().st_size > 5 * 32768
    return file, rows


def test_offline_wandb_run(offline_run):
    file, rows = offline_run
    read = read_run(file)
    assert (len(read.rows), read.skipped, read.torn) == (len(rows), 0, False)
    assert [{key: value for key, value in one.items() if key[0] != "_"} for one in read.rows] == rows


def test_records_of_all_lengths_around_the_ends_of_blocks():
    dice = random.Random(0)
    for _ in range(100):
        lengths = [dice.choice([0, 1, 7, 32761 - dice.randrange(20), 70_000, dice.randrange(3000)]) for _ in range(40)]
        records = [dice.randbytes(length) for length in lengths]
        run = run_file.RecordedRun("")
        assert list(run_file._records(framed(records), run)) == records
        assert not run.torn


def test_a_record_in_many_pieces_is_not_copied_for_each_of_them():
    sizes = [32761 - 7, *[32761] * 300, *[1] * 20_000]
    file = bytearray(b":W&B\x00\x00\x00")
    for i, size in enumerate(sizes):
        file += bytes(left) if (left := 32768 - len(file) % 32768) < 8 else b""
        file += struct.pack("<IHB", 0, size, 2 if i == 0 else 4 if i == len(sizes) - 1 else 3) + bytes(size)
    run = run_file.RecordedRun("")
    start = time.process_time()
    assert list(run_file._records(bytes(file), run)) == [bytes(sum(sizes))]
    assert time.process_time() - start < 2  # 200 GB would be moved, and a hundred times as much in a file of MAX_BYTES
    assert not run.torn


def framed(records):
    """LevelDB's log format, written as its description says."""
    file = bytearray(b":W&B\x00\x00\x00")
    for record in records:
        for i in range(len(record) + 1):
            if (left := 32768 - len(file) % 32768) < 7:
                file += bytes(left)
                left = 32768
            chunk, record = record[: left - 7], record[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[not i, not record]
            file += struct.pack("<IHB", 0, len(chunk), kind) + chunk
            if not record:
                break
    return bytes(file)


def test_torn_and_damaged_wandb_runs_never_raise_anything_else(offline_run, tmp_path):
    data, dice = offline_run[0].read_bytes(), random.Random(0)
    file = tmp_path / "run.wandb"
    for _ in range(20):
        place = dice.randrange(8, len(data))
        file.write_bytes(data[:place] if dice.random() < 0.5 else data[:place] + dice.randbytes(50) + data[place + 50 :])
        try:
            assert len(read_run(file).rows) <= len(offline_run[1])
        except ConfigError as error:
            assert "holds no rows" in str(error)  # noqa: PT017


def test_a_line_without_end_is_no_row_and_is_read_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    huge = b'{"step": 2, "x": "' + b"y" * 30_000_000 + b'"}\n'
    file.write_bytes(b'{"step": 1, "x": 1}\n' + huge + b'{"step": 3, "x": 3}\n')
    tracemalloc.start()
    run = read_run(file)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * len(huge)  # the file, and one line
    tracemalloc.stop()
    assert ([row["step"] for row in run.rows], run.skipped, run.torn) == ([1, 3], 1, False)
