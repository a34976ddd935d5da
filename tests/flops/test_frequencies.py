"""Which layers are of one kind: every Nth or as a list says, beside megatron-core's own patterns."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops import ConfigError
from bridge.flops.frequencies import everywhere, flagged, linear_layers
from bridge.flops.layer_pattern import moe_layers
from bridge.flops.shapes import ModelShape


def every(number, n):
    return number % n == 0


@pytest.mark.parametrize("layers", [None, 0, 1, 5])
def test_everywhere(layers):
    assert everywhere(ModelShape(num_layers=layers)) == [True] * (layers or 0)


@given(st.integers(0, 40), st.integers(1, 45))
def test_an_integer_asks_for_each_layer_by_its_number_from_one(layers, n):
    shape = ModelShape(num_layers=layers, no_rope_freq=n)
    assert flagged(shape, "no_rope_freq", every) == [number in range(n, layers + 1, n) for number in range(1, layers + 1)]
    asked = []
    flagged(shape, "no_rope_freq", lambda number, given: asked.append((number, given)))
    assert asked == [(number, n) for number in range(1, layers + 1)]


@pytest.mark.parametrize("value", [[1, 0, 1], (True, False, True), [2, 0, "x"]])
def test_a_list_has_one_entry_a_layer(value):
    found = flagged(ModelShape(num_layers=3, no_rope_freq=value), "no_rope_freq", every)
    assert found == [True, False, True]
    assert all(type(flag) is bool for flag in found)


def test_the_number_of_layers_may_be_another_one():
    shape = ModelShape(num_layers=6, no_rope_freq=2)
    assert flagged(shape, "no_rope_freq", every, 3) == [False, True, False]
    assert flagged(shape, "no_rope_freq", every, 0) == []
    assert flagged(ModelShape(num_layers=6, no_rope_freq=[1]), "no_rope_freq", every, 1) == [True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "model.no_rope_freq=0 must be a positive integer, or a list with one entry per layer"),
        (-1, "model.no_rope_freq=-1 must be a positive integer, or a list with one entry per layer"),
        (True, "model.no_rope_freq=True must be an integer or a list with one entry per layer"),
        (2.0, "model.no_rope_freq=2.0 must be an integer or a list with one entry per layer"),
        ("101", "model.no_rope_freq='101' must be an integer or a list with one entry per layer"),
        ({0, 1, 2}, "model.no_rope_freq={0, 1, 2} must be an integer or a list with one entry per layer"),
        ([1, 0], "model.no_rope_freq has 2 entries, but model.num_layers=3: give one entry per layer"),
        ([1, 0, 1, 0], "model.no_rope_freq has 4 entries, but model.num_layers=3: give one entry per layer"),
    ],
)
def test_what_says_it_for_no_layer(value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        flagged(ModelShape(num_layers=3, no_rope_freq=value), "no_rope_freq", every)


@pytest.mark.parametrize("layers", [1, 7, 12])
@pytest.mark.parametrize("freq", [1, 2, 3, 12, 13])
def test_patterns_are_megatron_cores(layers, freq):
    theirs = pytest.importorskip("megatron.core.models.gpt.experimental_attention_variant_module_specs")
    config = SimpleNamespace(num_layers=layers, linear_attention_freq=freq, moe_layer_freq=freq)
    shape = ModelShape(num_layers=layers, linear_attention_freq=freq, moe_layer_freq=freq, num_moe_experts=2)
    assert linear_layers(shape) == [bool(flag) for flag in theirs.get_linear_attention_pattern(config)]
    assert moe_layers(shape) == [bool(flag) for flag in theirs.get_moe_layer_pattern(config)]


def test_linear_attention_without_its_frequency_is_named():
    with pytest.raises(ConfigError) as error:
        linear_layers(ModelShape(num_layers=2, experimental_attention_variant="gdn"))
    assert str(error.value) == (
        "model.linear_attention_freq is missing: experimental_attention_variant='gdn' needs it (an integer N: every Nth layer is "
        "attention; or a list with 1 for linear)"
    )
