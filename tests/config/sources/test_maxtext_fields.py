"""MaxText's options: each is declared once, and does what its list says it does."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest

from bridge.config.sources import maxtext_fields as fields
from bridge.config.sources.maxtext import from_maxtext
from bridge.flops import compile_plan

#: The names of base.yml and of the fields of types.py.
OPTIONS = (Path(__file__).parents[2] / "data" / "maxtext_options.txt").read_text().split()
SMALL = {
    "decoder_block": "llama2", "base_emb_dim": 8, "base_num_query_heads": 4, "base_num_kv_heads": 2, "head_dim": 3,
    "base_mlp_dim": 16, "base_num_decoder_layers": 4, "vocab_size": 10, "max_target_length": 8, "per_device_batch_size": 1,
}  # fmt: skip


def priced(options):
    config = from_maxtext(options)
    plans = [compile_plan(config, convention) for convention in ("maxtext", "exact")]
    return [plan.flops([8]) for plan in plans], plans[1].parameters(), config.not_counted, config.sequences_per_step


def test_every_option_of_maxtext_is_declared_once():
    declared = [*fields.READ, *fields.DERIVED, *fields.CHANGES, *fields.HARDWARE, *fields.NEUTRAL]
    assert sorted(declared) == OPTIONS


def test_no_option_is_listed_twice():
    """In the sources: sets and tables hide it."""
    source = Path(fields.__file__)
    tree, read = ast.parse(source.read_text()), source.with_name("maxtext_defaults.json").read_text()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "names"]
    lists = [node.args[0].value.split() for node in calls]
    lists += [[key.value for key in node.keys] for node in ast.walk(tree) if isinstance(node, ast.Dict) and len(node.keys) > 3]
    lists += [[name for name, _ in json.loads(read, object_pairs_hook=list)]]
    assert sorted(map(len, lists)) == sorted(map(len, (fields.READ, fields.CHANGES, fields.HARDWARE, fields.NEUTRAL)))
    assert [name for listed in lists for name, times in Counter(listed).items() if times > 1] == []


def test_what_is_derived_has_a_base():
    assert {f"base_{name}" for name in fields.DERIVED} == {name for name in fields.READ if name.startswith("base_")} - {
        "base_config"
    }


def test_a_default_written_out_changes_nothing():
    """All that is read, at what MaxText has for it: the same model as a file that is silent."""
    assert priced(fields.READ | SMALL) == priced(SMALL)
    assert priced({"decoder_block": "llama2"}) == priced(fields.READ)
    assert priced(SMALL)[2] == ()


@pytest.mark.parametrize("name", fields.CHANGES)
def test_what_changes_the_work_is_named_away_from_its_default(name):
    default = fields.CHANGES[name]
    assert priced(SMALL | {name: default}) == priced(SMALL)
    other = {"enable_lora": True} if name in ("lora", "use_grpo") else [1] if isinstance(default, list) else "other"
    other = {"a": 1} if isinstance(default, dict) else other
    (sentence,) = from_maxtext(SMALL | {name: other}).not_counted
    assert sentence == f"{name}={other!r}: changes the work and is not counted"


@pytest.mark.parametrize("listed", ["HARDWARE", "NEUTRAL"])
def test_what_cannot_change_the_work_does_not_whatever_it_is(listed):
    for value in (True, 7, "other", ["x"], {"a": 1}):
        assert priced(dict.fromkeys(getattr(fields, listed), value) | SMALL) == priced(SMALL)
