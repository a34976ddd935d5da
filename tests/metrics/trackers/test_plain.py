"""What trackers can hold: JSON reads back what it was given, and numbers are doubles where they must be."""

from __future__ import annotations

import enum
import json
import math
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge.metrics.trackers.plain import doubles, flat, plain

TEXT = st.text('ab\u00e9\u2028"\\ \n', max_size=5)
ATOMS = st.none() | st.booleans() | st.integers() | TEXT | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=10)


@given(VALUES)
def test_json_reads_back_what_was_given(value):
    assert json.loads(json.dumps(plain(value))) == value


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (2**80 + 1, 2**80 + 1),
        (True, True),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float64("nan"), "nan"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[7]]), 7),
        (np.array([math.inf]), "inf"),
        (np.array([1, 2]), "[1 2]"),
        (torch.tensor(5), 5),
        (torch.tensor([0.25]), 0.25),
        (torch.tensor([]), "tensor([])"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({4}, [4]),
        (MappingProxyType({1: {None: 2}}), {"1": {"None": 2}}),
        (Fraction(1, 3), "1/3"),
        (torch.bfloat16, "torch.bfloat16"),
        (Colour.RED, "Colour.RED"),
    ],
    ids=repr,
)
def test_everything_else_becomes_plain(value, stored):
    found = plain(value)
    assert (found, type(found)) == (stored, type(stored)) or (found == stored and isinstance(value, float))
    json.dumps(found, allow_nan=False)


def test_numbers_of_a_row_as_doubles():
    row = {
        "integer": 3,
        "flag": True,
        "text": "3",
        "none": None,
        "numpy": np.int32(4),
        "tensor": torch.tensor([2.5]),
        "several": torch.ones(2),
        "list": [1],
        "above": 2**53 + 1,
        5: 0.5,
    }
    found = doubles(row)
    assert found == {"integer": 3.0, "flag": 1.0, "numpy": 4.0, "tensor": 2.5, "above": 2.0**53, "5": 0.5}
    assert {type(value) for value in found.values()} == {float}


def test_nested_options_have_dotted_names():
    options = {"model": {"layers": 2, "peft": {"dim": 8}}, "empty": {}, "list": [{"a": 1}], 3: {4: 5}}
    assert dict(flat(options)) == {"model.layers": 2, "model.peft.dim": 8, "empty": {}, "list": [{"a": 1}], "3.4": 5}
    assert list(flat({})) == []
    assert dict(flat({"a": 1}, "run.")) == {"run.a": 1}
