"""One class of error, whoever describes a model, and one sentence in it."""

import pickle

import pytest

import bridge.config
import bridge.flops
from bridge.config import from_huggingface, from_maxtext, load_recipe
from bridge.flops import compile_plan, conventions, frameworks, shapes
from bridge.flops.errors import ConfigError
from bridge.flops.terms import Context

DOORS = [
    (lambda: compile_plan({"num_layers": 2}), "model.hidden_size is missing: set it to a positive integer"),
    (lambda: conventions.get("exakt"), "convention='exakt' is not known; choose one of megatron, "),
    (lambda: frameworks.get("jax"), "framework='jax' is not known; choose one of megatron, "),
    (lambda: Context("windw"), "shape='windw' is not known"),
    (lambda: load_recipe("tiny", ["model.num_layers=-1"]), "model.num_layers=-1 is out of range; give at least 1"),
    (lambda: from_huggingface({"hidden_size": 8}), "model_type is missing"),
    (lambda: from_maxtext({"decoder_block": "gpt5"}), "decoder_block='gpt5' is not known"),
]


def test_it_is_one_class_under_every_name():
    assert bridge.flops.ConfigError is ConfigError
    assert bridge.config.ConfigError is ConfigError
    assert shapes.ConfigError is ConfigError
    assert ConfigError.__mro__[1] is ValueError  # who catches bad values catches it


@pytest.mark.parametrize(("door", "words"), DOORS)
def test_every_door_raises_it_with_one_sentence(door, words):
    with pytest.raises(ConfigError) as error:
        door()
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)
    assert error.value.args == (str(error.value),)


def test_it_crosses_processes():
    again = pickle.loads(pickle.dumps(ConfigError("model.num_layers=0 must be a positive integer")))
    assert (type(again), str(again)) == (ConfigError, "model.num_layers=0 must be a positive integer")
