"""The page about statistics, trackers and adapters: its examples run, and give the numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bridge.config import load_recipe, sources
from bridge.flops import compile_plan, statistics
from bridge.flops.conventions import EXACT
from bridge.flops.frameworks import MEGATRON
from bridge.flops.plan import Plan
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Kind, Term
from bridge.flops.transforms import differentiate, everything
from bridge.metrics.trackers import open_trackers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = ModuleType(name)
    exec(compile(BLOCKS[f"{name}.py"], f"{name}.py", "exec"), vars(found))
    monkeypatch.setitem(sys.modules, name, found)
    return found


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> list[Statistic]:
    block = BLOCKS["bridge/flops/statistics.py"]
    first = block.splitlines(keepends=True)[0]
    assert (ROOT / "bridge/flops/statistics.py").read_text().count(first) == 1
    for name, formula in eval(f"{{{block}}}", vars(statistics)).items():
        monkeypatch.setitem(statistics._FORMULAS, name, formula)
    return [Statistic("cube"), Statistic("longer_than", sizes=(512,))]


def test_a_term_asks_for_a_new_statistic(formulas: list[Statistic]) -> None:
    names = {"Term": Term, "Statistic": Statistic, "Kind": Kind}
    terms = differentiate([eval(line, names) for line in BLOCKS["term"].splitlines()], everything, MEGATRON)
    plan = Plan(EXACT, terms, (), everything, lambda how: terms)
    lengths = [3, 512, 513, 600]
    by_hand = 2 * (32 * 8 * (3**3 + 512**3 + 513**3 + 600**3) + 64 * 3 * 2)
    assert plan.flops(lengths, passes="forward") == by_hand
    assert plan.flops(np.array(lengths), passes="forward") == by_hand


def test_a_formula_takes_any_form_of_lengths(formulas: list[Statistic]) -> None:
    lengths, expected = [1, 512, 513], [[1, 512**3, 513**3], [0, 0, 1]]
    assert [[one.of(length) for length in lengths] for one in formulas] == expected
    assert [one.of(np.array(lengths)).tolist() for one in formulas] == expected
    assert [one.of(torch.tensor(lengths)).tolist() for one in formulas] == expected


def test_a_tracker_is_named_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module("csv_tracker", monkeypatch)
    (text,) = re.findall(r"```yaml\n(logger:.*?)```", PAGE, re.DOTALL)
    trackers = open_trackers(SimpleNamespace(**yaml.safe_load(text)["logger"]))
    trackers.log({"loss": 2.0}, 10)
    trackers.log({"throughput/total_flops": 10**30}, 10, commit=True)
    trackers.log({"loss": 1.5}, 20, commit=True)
    trackers.summary({"device": "X"})
    assert trackers.how_to_look() == ["CSV: metrics.csv"]
    trackers.close()
    with open("metrics.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["10", "loss", "2.0"],
            ["10", "throughput/total_flops", str(10**30)],
            ["20", "loss", "1.5"],
        ]


def test_a_source_is_a_file_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "bridge/config/sources/loom.py"
    monkeypatch.setitem(sys.modules, "bridge.config.sources.loom", found := ModuleType("loom"))
    exec(compile(BLOCKS[path], path, "exec"), vars(found))
    listed: dict[str, Any] = {}
    exec(BLOCKS["bridge/config/sources/__init__.py"], listed)
    assert listed["READERS"] == ("loom", *sources.READERS)
    monkeypatch.setattr(sources, "READERS", listed["READERS"])
    names: dict[str, Any] = {}
    exec(BLOCKS["source"], names)
    assert names["plan"].parameters()["trainable"] == 2 * 4 * (64 + 4 * 64)
    assert names["plan"].not_counted == ("not recognized: sparsity=2",)
    ours = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500}
    assert compile_plan(names["loom"]).breakdown([7, 3]) == compile_plan(ours).breakdown([7, 3])
    assert compile_plan(ours | {"sparsity": 2}).not_counted == ("not recognized: sparsity=2",)


def test_an_adapter_counts_what_its_loop_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = load_recipe("tiny"), tmp_path / "metrics.jsonl"
    batches = [{"tokens": torch.zeros(1, 10 * number + 3, dtype=torch.long)} for number in range(20)]
    options: dict[str, Any] = {"convention": "exact", "metrics_file": str(path), "compute_time": False, "energy": False}
    trainer = module("odd_trainer", monkeypatch).OddTrainer(config, batches, **options)
    trainer.fit(5)
    plan = compile_plan(config, "exact")
    trained = [3, 13, 23, 43, 53, 63, 73, 83, 93, 103]  # two batches a step; the second step evaluates on that of 33
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["throughput/total_flops"] for row in rows] == [plan.flops(trained[: 2 * steps]) for steps in (2, 4, 5)]
