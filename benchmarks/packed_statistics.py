"""Rows per second and peak memory of the table of a packed file, for every format, and the cost of a step that uses it.

    python -m benchmarks.packed_statistics [--rows 1000000] [--tokens 64] [--formats parquet,idx,jsonl,npy] [--folder DIR]

Each format runs in a process of its own, so that the peak resident memory is its own.  Files are written to a temporary
folder (about ``rows x tokens x 4`` bytes each) and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[1]
BATCH = 128
ROWS_AT_A_TIME = 50_000


def packs(rows: int, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of rows: starts of the sequences of each row, [n, 8], and tokens of each row, [n]."""
    rng = np.random.default_rng(1)
    for first in range(0, rows, ROWS_AT_A_TIME):
        count = min(ROWS_AT_A_TIME, rows - first)
        lengths = rng.integers(1, 2 * tokens // 8, (count, 8))
        ends = np.cumsum(lengths, axis=1)
        yield ends - lengths, ends[:, -1]


def write_parquet(path: str, rows: int, tokens: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"input_ids": pa.int32(), "loss_mask": pa.bool_(), "seq_start_id": pa.int32()}
    rng = np.random.default_rng(2)
    with pq.ParquetWriter(path, pa.schema([(name, pa.list_(kind)) for name, kind in columns.items()])) as writer:
        for starts, totals in packs(rows, tokens):
            bounds = np.append(0, np.cumsum(totals)).astype(np.int32)
            ids, mask = rng.integers(0, 128_000, bounds[-1], dtype=np.int32), rng.random(bounds[-1]) < 0.5
            of_starts = (np.arange(len(starts) + 1) * 8).astype(np.int32), starts.ravel().astype(np.int32)
            parts = [(bounds, ids), (bounds, mask), of_starts]
            arrays = [pa.ListArray.from_arrays(where, pa.array(values)) for where, values in parts]
            writer.write_table(pa.table(dict(zip(columns, arrays, strict=True))))


def write_npy(path: str, rows: int, tokens: int) -> None:
    import pickle

    rng = np.random.default_rng(2)
    array = np.empty(rows, dtype=object)
    position = 0
    pool = rng.integers(0, 128_000, 1_000_000).tolist()
    for starts, totals in packs(rows, tokens):
        for begins, total in zip(starts.tolist(), totals.tolist(), strict=True):
            at = (position * 7919) % (len(pool) - total)
            array[position] = {"input_ids": pool[at : at + total], "loss_mask": [True] * total, "seq_start_id": begins}
            position += 1
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (rows,)})
        pickle.dump(array, file, protocol=4)


def write_jsonl(path: str, rows: int, tokens: int) -> None:
    with open(path, "w") as file:
        for starts, totals in packs(rows, tokens):
            for lengths in np.diff(starts, axis=1, append=totals[:, None]).tolist():
                file.write(f'{{"lengths": {lengths}}}\n')


def write_idx(path: str, rows: int, tokens: int) -> None:
    lengths = np.concatenate([np.diff(starts, axis=1, append=totals[:, None]).ravel() for starts, totals in packs(rows, tokens)])
    with open(path, "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x04")
        file.write(np.array([len(lengths), rows + 1], "<u8").tobytes())
        file.write(lengths.astype("<i4").tobytes())
        file.write((np.cumsum(lengths) - lengths).astype("<i8").tobytes())
        file.write((np.arange(rows + 1) * 8).astype("<i8").tobytes())


FORMATS = {"parquet": write_parquet, "idx": write_idx, "jsonl": write_jsonl, "npy": write_npy}


def measure(path: str) -> dict[str, float]:
    """Build the table, read it back from the sidecar, and price steps with it."""
    from bridge.data.packed.statistics import calculate_avg_seqlen
    from bridge.training.utils.flop_utils import num_floating_point_operations

    start, cpu = time.perf_counter(), time.process_time()
    calculate_avg_seqlen(path, BATCH, 4096, True)
    built, cpu = time.perf_counter(), time.process_time() - cpu
    calculate_avg_seqlen(path, BATCH, 4096, True)
    read = time.perf_counter()
    cfg = SimpleNamespace(
        model=SimpleNamespace(num_layers=80, hidden_size=8192, num_attention_heads=64, vocab_size=128256, seq_length=4096),
        peft=SimpleNamespace(kind="lora", dim=8, target_modules=["linear_qkv"]),
        train=SimpleNamespace(global_batch_size=BATCH),
        dataset=SimpleNamespace(packed_sequence_specs=SimpleNamespace(packed_train_data_path=path)),
    )
    num_floating_point_operations(cfg, BATCH)
    calls = 200
    step = min(timeit.repeat(lambda: num_floating_point_operations(cfg, BATCH), number=calls, repeat=100)) / calls
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": built - start,
        "cpu_seconds": cpu,
        "sidecar_ms": 1e3 * (read - built),
        "step_us": 1e6 * step,
        "peak_mib": peak / 1024,
    }


def measurements(rows: int, tokens: int, formats: Iterable[str], folder: str | None = None) -> Iterator[dict[str, Any]]:
    """One format after the other: written, measured in a process of its own, removed."""
    module = [sys.executable, "-m", "benchmarks.packed_statistics"]
    with tempfile.TemporaryDirectory(dir=folder) as here:
        for name in formats:
            path = str(Path(here, f"training_4096.{name}"))
            write = f"import benchmarks.packed_statistics as p; p.FORMATS[{name!r}]({path!r}, {rows}, {tokens})"
            subprocess.run([sys.executable, "-c", write], check=True, cwd=ROOT)
            done = subprocess.run([*module, "--measure", path], check=True, cwd=ROOT, stdout=subprocess.PIPE)
            found = json.loads(done.stdout)
            yield {"format": name, "megabytes": os.path.getsize(path) / 1e6, "rows_s": rows / found["seconds"], **found}
            os.unlink(path)


def rows() -> Iterator[Row]:
    """A small file of each format; the command above measures large ones."""
    count = 50_000
    for found in measurements(count, 64, FORMATS):
        yield Row(f"table of a packed file, {found['format']}", found["rows_s"], "rows/s", None, f"{count:,} rows of 8 sequences")
        yield Row(f"price of a step from it, {found['format']}", found["step_us"], "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=64, help="mean tokens of a row, in 8 sequences")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--folder", help="where the files are written; a temporary folder when unset")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(f"{arguments.rows} rows of 8 sequences, {arguments.tokens} tokens a row")
    columns = "seconds", "cpu_seconds", "peak_mib", "sidecar_ms", "step_us"
    print(f"{'format':8} {'MB':>8} {'rows/s':>12} {'tokens/s':>12}", *(f"{column:>11}" for column in columns))
    formats = arguments.formats.split(",")
    for found in measurements(arguments.rows, arguments.tokens, formats, arguments.folder):
        speed = found["rows_s"]
        print(f"{found['format']:8} {found['megabytes']:8.0f} {speed:12,.0f} {speed * arguments.tokens:12,.0f}", end=" ")
        print(*(f"{found[column]:11.2f}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
