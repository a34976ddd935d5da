"""Fields of a Hugging Face configuration: what each can hold, which are read, and what is said of the others."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bridge.config import ConfigError, from_huggingface
from bridge.config.sources import huggingface_fields as module
from bridge.config.sources.huggingface_families import FAMILIES
from bridge.config.sources.huggingface_fields import (
    DEFAULTS,
    DEPTH,
    FLAG,
    FRACTION,
    INDEXES,
    MAX_SIZE,
    NEUTRAL,
    NUMBER,
    OBJECT,
    SIZE,
    TEXT,
    WORDS,
    Fields,
    FieldType,
    Unread,
)
from bridge.flops.shapes import MAX_LAYERS
from tests.config.sources.published import PUBLISHED, QWEN3

# ---- what a field can hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fit", "others"),
    [
        (SIZE, [0, 1, MAX_SIZE], [-1, MAX_SIZE + 1, 1.0, "1", True, None, [1]]),
        (DEPTH, [0, 1, MAX_LAYERS], [-1, MAX_LAYERS + 1, 2.0, False]),
        (NUMBER, [-1e30, 0, 1e-6, 1e30, 7], [float("nan"), float("inf"), -1.1e30, 1.1e30, True, "1", None]),
        (FRACTION, [0, 0.5, 1], [-0.01, 1.01, 2, False, "0.5"]),
        (FLAG, [True, False, 0, 1], [2, -1, 1.0, "true", None]),
        (TEXT, ["", "x" * MAX_LAYERS], ["x" * (MAX_LAYERS + 1), b"x", 1, None]),
        (OBJECT, [{}, {"a": 1}], [[], "x", 3, None]),
        (INDEXES, [[], [0, 1], (2,), [0] * MAX_LAYERS], [[0] * (MAX_LAYERS + 1), [-1], [1.0], [True], 3, "12", None]),
        (WORDS, [[], ["a"]], ["a", ["a", 1], [["a"]]]),
        (SIZE | INDEXES, [3, [3, 3]], ["3", [3.0], -3]),
    ],
    ids=["size", "depth", "number", "fraction", "flag", "text", "object", "indexes", "words", "size or indexes"],
)
def test_what_fits(kind: FieldType, fit: list[Any], others: list[Any]) -> None:
    assert [value for value in fit if not kind.fits(value)] == []
    assert [value for value in others if kind.fits(value)] == []


def test_either_of_two_is_said() -> None:
    assert (FLAG | TEXT).what == f"{FLAG.what}, or {TEXT.what}"


def words_of(tree: ast.AST) -> list[str]:
    """Names that stand in the texts of a list."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [word for text in texts for word in text.split()]


SOURCE = {
    node.targets[0].id: node.value
    for node in ast.parse(Path(module.__file__).read_text()).body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
}


def test_no_field_is_of_two_kinds() -> None:
    times = Counter(words_of(SOURCE["_NAMES"]))
    assert [name for name, many in times.items() if many > 1] == []
    assert times.keys() == module._KINDS.keys()


def test_no_neutral_field_is_listed_twice() -> None:
    lists = ("_OF_TRANSFORMERS", "_GENERATION", "_POSITIONS", "_ELEMENTWISE", "_MAMBA", "_STORAGE")
    times = Counter(word for name in lists for word in words_of(SOURCE[name]))
    assert [name for name, many in times.items() if many > 1] == []
    assert times.keys() == NEUTRAL


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a class of transformers assumes, by its name."""
    known = {"family": {"hidden_size": 64, "rope_theta": 5.0}, "family.vision_config": {"hidden_size": 32}}
    monkeypatch.setattr(module, "DEFAULTS", known)


def test_the_first_that_is_set(defaults: None) -> None:
    fields = Fields({"n_embd": 8, "hidden_size": 9, "n_layer": None}, "family")
    assert (fields.get("n_embd", "hidden_size"), fields.get("hidden_size", "n_embd")) == (8, 9)
    assert fields.get("n_layer", "n_embd") == 8
    assert fields.get("n_layer", "num_layers") is None


def test_silence_is_the_default_and_null_is_not(defaults: None) -> None:
    assert Fields({}, "family").get("hidden_size") == 64
    assert Fields({"hidden_size": None}, "family").get("hidden_size") is None
    # Another name for it that is there and null says the same.
    assert Fields({"n_embd": None}, "family").get("hidden_size", "n_embd") is None
    assert Fields({}, "family").get("n_embd", "hidden_size") == 64
    assert Fields({}, "other").get("hidden_size") is None


def test_a_part_has_the_defaults_of_its_class_and_its_place(defaults: None) -> None:
    tower = Fields({"vision_config": {"depth": 2.5}}, "family").part("vision_config")
    assert (tower.get("hidden_size"), tower.place) == (32, "vision_config.")
    with pytest.raises(
        ConfigError, match="^vision_config.depth=2.5 in the Hugging Face config must be a number: whole, 0 to 20000$"
    ):
        tower.get("depth")
    assert Fields({}, "family").part("vision_config").get("hidden_size") == 32
    group = Fields({"rope_scaling": {"factor": 8.0}}, "family").group("rope_parameters", "rope_scaling")
    assert (group.get("factor"), group.get("rope_theta"), group.place) == (8.0, None, "rope_parameters.")
    assert Fields({}, "family").group("rope_parameters").get("factor") is None


@pytest.mark.parametrize(("value", "size"), [(5, 5), ([5, 5], 5), ([5], 5)])
def test_a_size(value: Any, size: int) -> None:
    assert Fields({"image_size": value}, "").size("image_size") == size


@pytest.mark.parametrize("value", [0, None, [5, 6], [], [0, 0]])
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(ConfigError, match="^text_config.image_size=.* in the Hugging Face config must be a positive integer$"):
        Fields({"image_size": value}, "", "text_config.").size("image_size")


def test_a_field_that_may_hold_some_values_alone(defaults: None) -> None:
    fields = Fields({"vision_feature_layer": -1, "odd": None}, "family", "p.")
    fields.only("vision_feature_layer", -1, -2)
    fields.only("odd", 1)
    fields.only("missing", 1)
    fields.only("rope_theta", 5.0)
    with pytest.raises(Unread, match="^p.vision_feature_layer=-1 is not read$"):
        fields.only("vision_feature_layer", -2)
    with pytest.raises(Unread, match="^p.rope_theta=None is not read$|^p.rope_theta=5.0 is not read$"):
        fields.only("rope_theta", 1.0)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_what_nobody_read_is_said_once_and_in_order() -> None:
    values = {
        "hidden_size": 8, "odd": 3, "off": False, "zero": 0, "none": None, "empty": [], "_private": 1, "use_cache": True,
        "my_token_id": 5, "image_token_index": 6, "skipped": 7, "other": 8,
    }  # fmt: skip
    fields = Fields(values, "", "text_config.")
    fields.get("hidden_size")
    fields.skip("skipped")
    assert fields.sentences() == [
        "not recognized: text_config.odd=3 may change the work; if it does, that is not counted",
        "not recognized: text_config.other=8 may change the work; if it does, that is not counted",
    ]
    fields.only("odd", 3)
    assert fields.mentioned("other", "missing", "none") == {"other": 8, "none": None}
    assert fields.sentences() == []


def test_what_is_reported_stands_before_what_is_not_recognized() -> None:
    fields = Fields({"odd": 3, "b": 2, "a": None}, "")
    fields.report(("a", "b"), "is left out")
    fields.report("missing", "is missing")
    fields.get("b")
    assert fields.sentences() == [
        "b=2: is left out",
        "missing=None: is missing",
        "not recognized: odd=3 may change the work; if it does, that is not counted",
    ]
    assert Fields({}, "").not_counted == []


def test_a_field_that_transformers_does_not_look_at() -> None:
    fields = Fields({"same": 4, "other": 5, "null": None}, "")
    for name in ("same", "other", "null", "missing"):
        fields.expect(name, 4)
    assert fields.sentences() == ["other=5: transformers builds 4, and that is counted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3", "hidden_size": "many"}, "hidden_size='many' in the Hugging Face config must be a number"),
        (
            PUBLISHED["llama3-8b"] | {"hidden_size": None},
            "hidden_size=None in the Hugging Face config must be a positive integer",
        ),
        (QWEN3 | {"hidden_size": 64.0}, "hidden_size=64.0 in the Hugging Face config must be a number: whole, 0 to 2147483647"),
        (QWEN3 | {"vocab_size": 10**30}, "vocab_size=10+ in the Hugging Face config must be a number: whole"),
        (QWEN3 | {"vocab_size": 10**5000}, "vocab_size=<int> in the Hugging Face config must be a number: whole"),
        (QWEN3 | {"num_hidden_layers": 20_001}, "num_hidden_layers=20001 .* must be a number: whole, 0 to 20000"),
        (QWEN3 | {"layer_types": ["full_attention"] * 20_001}, "layer_types=.* must be a list of words, at most 20000"),
        (QWEN3 | {"layer_types": [[]]}, "layer_types=.* must be a list of words"),
        (QWEN3 | {"tie_word_embeddings": "no"}, "tie_word_embeddings='no' .* must be true or false"),
        (QWEN3 | {"rope_theta": float("nan")}, "rope_theta=nan .* must be a number"),
        (QWEN3 | {"rope_parameters": {"partial_rotary_factor": 2}}, "rope_parameters.partial_rotary_factor=2 .* from 0 to 1"),
        ({"model_type": "qwen2_5_vl", "text_config": 3}, "text_config=3 in the Hugging Face config must be an object"),
        ({"model_type": "qwen2_5_vl", "vision_config": "x"}, "vision_config='x' in the Hugging Face config must be an object"),
        (
            {"model_type": "falcon_h1", "hidden_size": 64, "num_hidden_layers": 15_000},
            "30000 layers are more than the maximum",
        ),
    ],
)
def test_values_of_the_wrong_kind_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface(change)


def test_defaults_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from tests.config.sources.write_huggingface_defaults import class_defaults

    assert json.loads(json.dumps(class_defaults())) == DEFAULTS, "run tests/config/sources/write_huggingface_defaults.py"


def test_neutral_fields_are_not_read() -> None:
    """What is read cannot be neutral, except what only training uses."""
    for_training = {"initializer_range", "partial_rotary_factor", "routed_scaling_factor", "n_group", "topk_group",
                    "router_aux_loss_coef", "rope_parameters", "rope_scaling", "rope_theta", "swiglu_limit"}  # fmt: skip
    read = {name for family in FAMILIES.values() for name in family.fields.values() if isinstance(name, str)}
    assert read & NEUTRAL <= for_training
