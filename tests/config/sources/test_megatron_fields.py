"""The lists of fields, held against the classes and the arguments that they name."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from bridge.config.sources import megatron_fields
from bridge.config.sources.megatron_core import OWN, audit
from bridge.config.sources.megatron_fields import HARDWARE, NEUTRAL, READ, REPORTED
from bridge.flops import formats
from tests.integrations import megatron_bridge_stubs

DATA = json.loads((Path(__file__).parents[2] / "data" / "megatron_lm_args.json").read_text())
#: The 741 names of real namespaces of arguments.
ARGUMENTS = set(DATA["base"]).union(*(case["args"] for case in DATA["cases"]))
CLASSES = [TransformerConfig, MLATransformerConfig, HeterogeneousTransformerConfig]
FIELDS = {item.name: item for kind in CLASSES for item in dataclasses.fields(kind)}
LISTS = {"read": set(OWN) | READ, "neutral": NEUTRAL, "hardware": HARDWARE.keys(), "reported": REPORTED.keys()}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_declared(kind):
    declared = set(OWN) | READ | NEUTRAL | HARDWARE.keys() | REPORTED.keys()
    assert {item.name for item in dataclasses.fields(kind) if not item.name.startswith("_")} - declared == set()


def test_every_name_of_the_parser_is_declared_once():
    assert len(ARGUMENTS) == 741
    declared = set().union(*LISTS.values())
    assert {name for name in ARGUMENTS if not name.startswith("_")} - declared == set()


#: Of models that Megatron-Bridge describes by objects made elsewhere, and of its later releases.
ELSEWHERE = {"thinker_config", "per_layer_embed_dim", "per_layer_embed_vocab_size", "vit_gradient_checkpointing"}


def test_what_is_read_or_said_is_a_field_of_something():
    """Of megatron-core's classes, of Megatron-LM's arguments, or of a provider; neutral names of other releases stay."""
    folder = megatron_bridge_stubs.root()
    if folder is None:
        pytest.skip("megatron-bridge is not installed")
    trees = [ast.parse(path.read_text()) for path in folder.glob("models/**/*provider*.py")]
    lines = [line for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) for line in node.body]
    provided = {line.target.id for line in lines if isinstance(line, ast.AnnAssign)}
    wanted = READ | HARDWARE.keys() | REPORTED.keys()
    assert wanted - FIELDS.keys() - ARGUMENTS - provided == ELSEWHERE


@pytest.mark.parametrize("one", LISTS)
@pytest.mark.parametrize("other", LISTS)
def test_no_field_is_in_two_lists(one, other):
    assert one == other or LISTS[one] & LISTS[other] == set()


def words(node):
    texts = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str))
    return [word for text in texts for word in text.split()]


def test_no_field_is_listed_twice():
    """In the source: a set hides it."""
    tree = ast.parse(Path(megatron_fields.__file__).read_text())
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_names"]
    assert sorted(map(len, map(words, lists))) == sorted(map(len, (READ - set(formats.FIELDS), NEUTRAL)))
    for node in lists:
        assert [name for name, times in Counter(words(node)).items() if times > 1] == []
    for table in (node.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)):
        assert [name for name, times in Counter(key.value for key in table.keys).items() if times > 1] == []


def test_what_is_read_is_no_field_of_ours_again():
    assert READ & set(OWN) == set()


def test_the_default_of_a_field_is_harmless():
    """Of megatron-core's classes, and of Megatron-LM's parser: a run that sets nothing is told nothing."""
    harmless = HARDWARE | {name: values for name, (values, _) in REPORTED.items()}
    held = {name: FIELDS[name].default for name in harmless.keys() & FIELDS.keys() if FIELDS[name].init}
    assert len(held) >= 5
    assert {name for name, default in held.items() if default not in harmless[name]} == set()
    given = {name: DATA["base"][name] for name in harmless.keys() & DATA["base"].keys()}
    assert len(given) >= 15
    assert {name for name, value in given.items() if value not in harmless[name]} == set()


@pytest.mark.parametrize("name", HARDWARE)
def test_what_hardware_runs_more_is_named_away_from_its_harmless_values(name):
    for value in HARDWARE[name]:
        assert audit({name: value}).hardware_unknown == []
    found = audit({name: "other"})
    assert found.hardware_unknown == [f"{name}='other': its recomputation or padding is unknown"]
    assert found.not_counted == []  # FLOPs and MFU stand


@pytest.mark.parametrize("name", REPORTED)
def test_what_changes_the_work_is_named_away_from_its_harmless_values(name):
    harmless, consequence = REPORTED[name]
    for value in harmless:
        assert audit({name: value}).not_counted == []
    found = audit({name: "other"})
    assert found.not_counted == [f"{name}='other': {consequence}"]
    assert found.hardware_unknown == []


def test_what_cannot_change_the_work_says_nothing_whatever_it_is():
    found = audit(dict.fromkeys(NEUTRAL | READ | set(OWN), "other"))
    assert (found.not_counted, found.hardware_unknown) == ([], [])
