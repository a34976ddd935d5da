"""Traces on disk."""

import json
import multiprocessing
import os
from fractions import Fraction

import pytest

from bridge.config import from_huggingface
from bridge.flops import frameworks
from bridge.flops.reading import Model
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind, Pass, Term, TermPlace
from bridge.tracing import cache

TERMS = tuple(
    Term("q_proj", "self_attention", 64, 48, times=Fraction(3, 2), path=f"layers.{i}.q_proj", place=i, passes=Pass.TRAINING)
    for i in range(3)
) + (
    Term("query_key", "core_attention", 8, 4, Context("window", (20,)), kind=Kind.CORE, weight=False, place=2),
    Term("scan", "mamba", 8, 4, Statistic("pieces", sizes=(64,)), passes=Pass.FORWARD | Pass.RECOMPUTE, place=TermPlace.LAST),
    Term("experts", "moe", 64, 32, copies=8, active_copies=2, place=TermPlace.FIRST),
)
MODEL = Model(traced=TERMS, freeze=("layers.1.q_proj",), framework=frameworks.TRANSFORMERS, not_counted=("a: is left out",))
SMALL = {"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64, "vocab_size": 100}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path))
    return tmp_path / "traces"


def test_a_model_is_the_same_again():
    again = cache.from_json(json.loads(json.dumps(cache.as_json(MODEL))))
    assert again == MODEL
    assert len(cache.as_json(MODEL)["sorts"]) == 4, "equal layers stand once"


def test_what_is_stored_is_found_by_the_configuration(folder):
    cache.store(SMALL, MODEL)
    assert cache.load({**SMALL, "_name_or_path": "somebody/else"}) == MODEL
    assert cache.load({**SMALL, "n_layer": 3}) is None
    (file,) = folder.iterdir()
    file.write_text(file.read_text()[:-9])
    assert cache.load(SMALL) is None
    file.write_text('{"sorts": [], "terms": [[0, "a", "first"]], "freeze": [], "not_counted": []}')
    assert cache.load(SMALL) is None


def test_the_versions_and_the_code_belong_to_the_name(monkeypatch):
    cache.store(SMALL, MODEL)
    monkeypatch.setattr(cache, "_version", lambda package: "another")
    assert cache.load(SMALL) is None


def test_the_newest_are_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, "CAPACITY", 2)
    for layers in range(4):
        cache.store({**SMALL, "n_layer": layers}, MODEL)
        os.utime(cache._path({**SMALL, "n_layer": layers}), (layers, layers))
    assert [cache.load({**SMALL, "n_layer": layers}) is not None for layers in range(4)] == [False, False, True, True]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "file"))
    cache.store(SMALL, MODEL)
    assert cache.load(SMALL) is None


def _write(folder, rounds):
    os.environ["BRIDGE_CACHE_DIR"] = folder
    for _ in range(rounds):
        cache.store(SMALL, MODEL)
        assert cache.load(SMALL) == MODEL


def test_processes_share_it(tmp_path):
    workers = [multiprocessing.get_context("fork").Process(target=_write, args=(str(tmp_path), 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [file.suffix for file in (tmp_path / "traces").iterdir()] == [".json"], "nothing half written is left"


def test_a_family_is_traced_once(folder, monkeypatch):
    pytest.importorskip("transformers")
    first = from_huggingface(SMALL)
    (file,) = folder.iterdir()
    assert file.stat().st_size < 20_000
    monkeypatch.setattr("bridge.tracing.tracing.trace", None)  # not again
    again = from_huggingface(SMALL)
    assert (again.traced, again.source, again.model.seq_length) == (first.traced, "traced", 64)
