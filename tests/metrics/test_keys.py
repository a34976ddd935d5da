"""The declaration of every logged key: one name each, found by what is logged, and everything that is logged is declared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bridge
from bridge.config.schema import ParallelConfig
from bridge.metrics import keys
from bridge.metrics.keys import HOST, JOB, KEYS, LAYOUT, THROUGHPUT, TRAINING, Key, find_key, units
from bridge.metrics.time_parts import PARTS
from bridge.metrics.trackers.wandb import WATERFALL
from bridge.training.callbacks.throughput import FACTS, ROWS, SUMMARY

FAMILIES = [key for key in KEYS if key.prefix is not None]


def test_no_key_is_declared_twice():
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names)
    assert (*THROUGHPUT, *TRAINING, *JOB, *HOST) == KEYS
    assert units() == {key.name: key.unit for key in KEYS}
    assert all(key.unit and key.meaning for key in KEYS)
    assert {key.name.partition("/")[0] for key in (*THROUGHPUT, *JOB, *HOST)} == {"throughput", "goodput", "host"}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_and_a_member_of_a_family_are_found(key):
    logged = key.name if key.prefix is None else key.prefix + "2"
    assert find_key(logged) is key
    assert key.matches(logged)
    others = {other.name for other in KEYS if other.matches(logged)} - {key.name}
    assert others == ({"throughput/compute_time/slowest_<dimension>"} if key.name.endswith("slowest_rank") else set())
    if key.prefix is not None:
        assert re.fullmatch(r"[^<>]*<[a-z]+>", key.name)
        assert not key.matches(key.prefix)  # of a family nothing is logged without its member


@pytest.mark.parametrize("name", ["", "throughput", "throughput/", "throughput/MFU", "mfu", "loss", "bridge/throughput/mfu"])
def test_what_is_not_ours_has_no_declaration(name):
    assert find_key(name) is None


def test_single_keys_match_themselves_alone():
    single, family = Key("a/b", "s", ""), Key("a/b/<part>", "s", "")
    assert (single.prefix, family.prefix) == (None, "a/b/")
    logged = ["a/b", "a/b/", "a/b/c", "a/b/c/d", "a/bc", "x/a/b"]
    assert single.matching(logged) == ["a/b"]
    assert family.matching(logged) == ["a/b/c", "a/b/c/d"]


def test_a_name_of_its_own_comes_before_its_family():
    assert find_key("throughput/compute_time/slowest_rank").unit == "index"
    assert find_key("throughput/compute_time/slowest_rank").name == "throughput/compute_time/slowest_rank"
    assert find_key("throughput/compute_time/slowest_tensor").name == "throughput/compute_time/slowest_<dimension>"
    assert find_key("throughput/imbalance/experts/layer_7").name == "throughput/imbalance/experts/layer_<number>"
    assert find_key("throughput/flops/") is None


def test_whatever_the_sources_log_is_declared():
    """Every text of ours that is a key of these groups, or the beginning of one; the rest are names of other things."""
    written = set()
    for path in Path(bridge.__file__).parent.rglob("*.py"):
        if path != Path(keys.__file__):
            written |= set(re.findall(r"""["'](throughput/[\w/-]*|goodput/[\w/-]*)""", path.read_text()))
    beginnings = [key.prefix or key.name for key in KEYS]
    unknown = {text for text in written if find_key(text) is None and not any(name.startswith(text) for name in beginnings)}
    assert unknown == {FACTS, ROWS, SUMMARY, WATERFALL}


def test_the_parts_of_a_step_are_those_that_are_logged():
    meaning = next(key.meaning for key in KEYS if key.name == "throughput/time/<part>")
    named = re.findall(r"[a-z]+", meaning.partition(": ")[2].partition("; ")[0])
    assert [name for name in PARTS if name in named] == list(PARTS)


def test_a_layouts_short_names_are_options_of_the_parallel_section():
    assert len(set(LAYOUT.values())) == len(LAYOUT)
    assert set(LAYOUT.values()) - set(ParallelConfig.__dataclass_fields__) == {"data_parallel_size"}  # follows from the rest
