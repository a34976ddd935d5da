"""Instruction data: examples from real text, packed rows, files of them, and what is counted of them."""

from __future__ import annotations

import ast
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bridge.cli.main import main
from bridge.config import Config, load_recipe
from bridge.data.batching import build_collate
from bridge.data.examples import read_examples
from bridge.data.instructions import InstructionData, pack_instructions
from bridge.data.loader import open_data
from bridge.data.packed.content import PackedFile, write_rows
from bridge.flops import ConfigError, compile_plan
from bridge.metrics.batch_lengths import read_lengths
from bridge.training.utils.flop_utils import num_floating_point_operations
from tests.data.packed.packed_data import save_npy, save_parquet

SOURCE = '''
import os

@cache
def first(a,
          b=1):
    """One."""
    return a + b

class Thing:
    async def second(self):
        """Two
        lines."""
        def inner():
            "Three."
            pass

        return inner

def only_a_docstring():
    """Four."""

def on_one_line(): "Five."; return 5

def without_a_docstring(x):
    return x
'''

# 12 rows of at most 40 tokens, prompts and answers of every short length.
LINES = [{"input": "q" * (1 + 3 * n % 7), "output": "a" * (1 + 5 * n % 11)} for n in range(40)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return path


def config(*overrides: str) -> Config:
    sizes = ("model.seq_length=40", "train.global_batch_size=4", "train.micro_batch_size=2", "data.eval_fraction=0.1")
    return load_recipe("tiny", ["data.kind=instructions", "data.batching=packed", *sizes, *overrides])


# ---- examples -------------------------------------------------------------------------------------------------------


def test_functions_with_a_docstring_are_prompts_and_their_bodies_answers(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.py").write_text("def broken(:\n")
    (tmp_path / "c.txt").write_text("no Python")
    first, second, inner = read_examples(str(tmp_path))
    assert first == (b'def first(a,\n          b=1):\n    """One."""\n', b"    return a + b\n")
    assert second.prompt == b'async def second(self):\n    """Two\n    lines."""\n'
    assert second.answer == b'    def inner():\n        "Three."\n        pass\n\n    return inner\n'
    assert inner == (b'def inner():\n    "Three."\n', b"    pass\n")
    assert read_examples(str(tmp_path), 2) == [first, second]


def test_the_standard_library_gives_whole_functions_always_in_the_same_order() -> None:
    examples = read_examples(None, 300)
    assert len(set(examples)) > 290
    assert examples == read_examples(None, 300)
    for prompt, answer in examples:
        (function,) = ast.parse(prompt + answer).body
        (signature,) = ast.parse(prompt).body
        assert ast.get_docstring(function) == ast.get_docstring(signature) is not None  # type: ignore[arg-type]
        assert ast.dump(function.args) == ast.dump(signature.args)  # type: ignore[attr-defined]


def test_json_lines_are_read_and_wrong_ones_named(lines: Path) -> None:
    assert [(e.prompt.decode(), e.answer.decode()) for e in read_examples(str(lines))] == [
        (line["input"], line["output"]) for line in LINES
    ]
    for wrong in ('{"input": "no output"}', '["a list"]', '{"input": 1, "output": 2}', "{"):
        lines.write_text('{"input": "a", "output": "b"}\n' + wrong)
        with pytest.raises(ConfigError, match="line 2 of .*examples.jsonl"):
            read_examples(str(lines))
    lines.write_text("")
    with pytest.raises(ConfigError, match="holds no examples"):
        read_examples(str(lines))


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_hold_every_example_once_and_learn_the_answers_alone(lines: Path) -> None:
    training, evaluation = pack_instructions(config(f"data.path={lines}"))
    found = []
    for row in (*training, *evaluation):
        assert len(row.input_ids) == len(row.loss_mask) <= 40
        for start, end in pairwise([*row.seq_start_id, len(row.input_ids)]):
            tokens, mask = row.input_ids[start:end].tolist(), row.loss_mask[start:end].tolist()
            assert tokens.pop() == 256
            prompt = tokens.count(ord("q"))
            assert tokens == [ord("q")] * prompt + [ord("a")] * (len(tokens) - prompt)
            assert mask == [position + 1 >= prompt for position in range(len(tokens) + 1)]
            found.append((prompt, len(tokens) - prompt))
    assert sorted(found) == sorted((len(line["input"]), len(line["output"])) for line in LINES)
    assert sum(len(row.seq_start_id) for row in evaluation) == 4


def test_examples_that_do_not_fit_are_left_out(lines: Path) -> None:
    training, evaluation = pack_instructions(config(f"data.path={lines}", "data.packed_sequence_specs.packed_sequence_size=12"))
    fitting = [line for line in LINES if len(line["input"] + line["output"]) + 1 <= 12]
    assert sum(len(row.seq_start_id) for row in (*training, *evaluation)) == len(fitting) < len(LINES)
    with pytest.raises(ConfigError, match="none of the 40 examples fits into a row of 2 tokens"):
        pack_instructions(config(f"data.path={lines}", "data.packed_sequence_specs.packed_sequence_size=2"))


@pytest.mark.parametrize("context", [1, 2])
def test_a_prompt_is_computed_and_not_learned(lines: Path, context: int) -> None:
    data = InstructionData(config(f"data.path={lines}"))
    samples = [data.training[0], data.training[1]]
    batch = build_collate("packed", context_parallel_size=context)(samples)
    segments = [segment for sample in samples for segment in sample]
    lengths = [len(inputs) for inputs, *_ in segments]
    assert read_lengths(batch).sequences.tolist() == lengths  # type: ignore[union-attr]
    real = ~batch["padding_mask"]
    assert int(real.sum()) == sum(lengths)
    for name, part in (("tokens", 0), ("labels", 1), ("loss_mask", 2)):
        assert batch[name][real].tolist() == np.concatenate([segment[part] for segment in segments]).tolist()
    assert batch["loss_mask"][~real].sum() == 0
    assert 0 < int(batch["loss_mask"].sum()) < sum(lengths)


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(lines: Path) -> None:
    samples = InstructionData(config(f"data.path={lines}")).training
    rows = samples.samples_per_epoch()
    epochs = [[np.concatenate([s[0] for s in samples[e * rows + n]]).tobytes() for n in range(rows)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_run_on_a_packed_file_is_a_run_on_its_examples(lines: Path, tmp_path: Path, ending: str) -> None:
    file, other = (tmp_path / f"{name}.{ending}" for name in ("training", "validation"))
    cfg = config(f"data.path={lines}")
    rows, held = pack_instructions(cfg)
    write_rows(file, rows)
    write_rows(other, held)
    specs = f"data.packed_sequence_specs={{packed_train_data_path: {file}, packed_val_data_path: {other}}}"
    read = open_data(config(specs, "train.eval_interval=1", "train.eval_iters=1"))
    made = open_data(config(f"data.path={lines}", "train.eval_interval=1", "train.eval_iters=1"))
    for one, two in ((read.training, made.training), (read.evaluation, made.evaluation)):
        assert one is not None
        assert two is not None
        assert one.samples_per_epoch() == two.samples_per_epoch()
        for number in range(one.samples_per_epoch()):
            for left, right in zip(one[number], two[number], strict=True):
                assert [part.tolist() for part in left] == [part.tolist() for part in right]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["examples.jsonl", file.name, other.name])
    if ending == "npy":  # what numpy, and so NeMo, reads
        for plain, row in zip(np.load(file, allow_pickle=True), rows, strict=True):
            assert plain == {name: part.tolist() for name, part in row._asdict().items()}


def test_flops_of_an_epoch_follow_from_the_packed_file(lines: Path, tmp_path: Path) -> None:
    rows, _ = pack_instructions(config(f"data.path={lines}"))
    rows = rows[: len(rows) // 4 * 4]
    write_rows(tmp_path / "training.npy", rows)
    adapters = "peft={kind: lora, dim: 4, target_modules: [linear_qkv]}"
    cfg = config(f"data.packed_sequence_specs.packed_train_data_path={tmp_path}/training.npy", adapters)
    lengths = [len(inputs) for row in rows for inputs, *_ in row.segments()]
    for convention in ("megatron", "exact"):
        expected = sum(compile_plan(cfg, convention).flops([length]) for length in lengths)
        assert num_floating_point_operations(cfg, len(rows), convention=convention) == expected


def row(tokens: int = 6, **changes: object) -> dict[str, object]:
    return {"input_ids": list(range(tokens)), "seq_start_id": [0, 3], "loss_mask": [True] * tokens, **changes}


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch hostile",)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([row(), {"input_ids": [1, 2], "seq_start_id": [0]}], "row 1: it is not a dictionary with loss_mask"),
        ([row(loss_mask=[True] * 5)], "row 0: 6 input_ids have a loss_mask of 5"),
        ([row(seq_start_id=[1, 3])], "row 0: 6 input_ids, and seq_start_id"),
        ([row(seq_start_id=[0, 9])], "row 0: 6 input_ids, and seq_start_id"),
        ([row(input_ids=[0.5] * 6)], "must hold integers"),
        ([row(input_ids=[2**32, 1, 2, 3, 4, 5])], "row 0: input_ids of 1 to 4294967296 are not tokens"),
        ([row(input_ids=[-1, 1, 2, 3, 4, 5])], "row 0: input_ids of -1 to 5 are not tokens"),
        ([row(tokens=2, seq_start_id=[0, 1])], "row 0: no sequence has two tokens"),
        ([row(loss_mask=Hostile())], "cannot be read: it holds posix.system"),
        ([row(input_ids=[300] * 6)], "model.vocab_size=257: packed row 0"),
        ([row(tokens=60, seq_start_id=[0])], "model.seq_length=40: packed row 0 has a sequence of 59 tokens"),
    ],
)
def test_a_bad_packed_file_is_one_error(tmp_path: Path, rows: list[object], problem: str) -> None:
    save_npy(tmp_path / "bad.npy", rows)
    specs = f"data.packed_sequence_specs.packed_train_data_path={tmp_path}/bad.npy"
    cfg = config(specs, "train.global_batch_size=1", "train.micro_batch_size=1")
    with pytest.raises(ConfigError, match=problem):
        [InstructionData(cfg).training[number] for number in range(len(rows))]
    assert not Path("hostile").exists()


def test_a_torn_parquet_or_no_file_at_all_is_one_error(tmp_path: Path) -> None:
    save_parquet(tmp_path / "torn.parquet", [row()])
    content = (tmp_path / "torn.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[: len(content) // 2])
    for name, problem in (("torn.parquet", "cannot be read"), ("no.npy", "does not exist.*bridge pack"), ("a.jsonl", "exist")):
        with pytest.raises(ConfigError, match=problem):
            PackedFile(str(tmp_path / name), "option")


# ---- options and the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (["data.batching=padded"], "data.batching=padded"),
        (["data.kind=text", "data.packed_sequence_specs.packed_sequence_size=8"], "data.kind=text"),
        (["data.packed_sequence_specs.packed_sequence_size=1"], "packed_sequence_size=1"),
        (["data.packed_sequence_specs.packed_val_data_path=x.npy"], "packed_val_data_path=x.npy"),
        (
            ["data.packed_sequence_specs.packed_train_data_path=x.npy", "train.eval_interval=1", "train.eval_iters=1"],
            "packed_val_data_path",
        ),
    ],
)
def test_options_that_do_not_go_together(overrides: list[str], option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        config(*overrides)


def test_too_few_rows_for_a_batch(lines: Path) -> None:
    with pytest.raises(ConfigError, match="one batch needs 400 different rows"):
        InstructionData(config(f"data.path={lines}", "train.global_batch_size=400"))


def test_the_command_writes_what_the_run_would_pack(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["data.kind=instructions", "data.batching=packed", "model.seq_length=40", f"data.path={lines}"]
    command = ["pack", "tiny", "new/training.parquet", "--evaluation", "new/validation.npy", *options, "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    rows, held = pack_instructions(config(f"data.path={lines}", "data.eval_fraction=0.05"))
    for name, made in (("new/training.parquet", rows), ("new/validation.npy", held)):
        read = PackedFile(name, "option")
        assert [[part.tolist() for part in row] for row in read] == [[part.tolist() for part in row] for row in made]
        assert facts[name]["rows"] == len(made)
        assert facts[name]["input_tokens"] == sum(len(inputs) for row in made for inputs, *_ in row.segments())
    assert main(["pack", "tiny", "x.npy"]) == 2
    for files in (["x.txt"], ["first.npy", "--evaluation", "x.txt"]):
        assert main(["pack", "tiny", *files, *options]) == 2
        assert "x.txt must end in .npy or .parquet" in capsys.readouterr().err
    assert not Path("first.npy").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [(["a"], "column input_ids holds string, not lists"), ([None], "column input_ids has rows without a value")],
)
def test_foreign_parquet_columns_are_one_sentence(tmp_path, values, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.string() if values[0] else pa.list_(pa.int64())
    pq.write_table(
        pa.table({name: pa.array(values, kind) for name in ("input_ids", "seq_start_id", "loss_mask")}), tmp_path / "x.parquet"
    )
    with pytest.raises(ConfigError, match=f"option: .*x.parquet cannot be read: its {words}. Write it again"):
        PackedFile(str(tmp_path / "x.parquet"), "option")
