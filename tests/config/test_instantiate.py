"""Objects named in a recipe, and the words for a wrong target or argument."""

from __future__ import annotations

import collections
from fractions import Fraction

import pytest

from bridge.config import ConfigError, instantiate


def test_arguments_reach_the_target():
    assert instantiate({"_target_": "fractions.Fraction", "numerator": 3, "denominator": 4}) == Fraction(3, 4)
    assert instantiate({"_target_": "collections.Counter"}) == collections.Counter()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("fractions.Fraction", "must be a mapping with `_target_`"),
        ({"numerator": 3}, "must be a mapping with `_target_`"),
        ({"_target_": "Fraction"}, "is not an import path"),
        ({"_target_": "no_such_package.Thing"}, "No module named 'no_such_package'"),
        ({"_target_": "fractions.Fractoin"}, "did you mean fractions.Fraction?"),
        ({"_target_": "fractions.Decimal.nothing"}, "cannot be imported"),
        ({"_target_": "bridge.config.schema.PeftConfig", "rank": 3}, "unexpected keyword argument 'rank'; it takes kind, dim"),
        ({"_target_": "fractions.Fraction", "numerator": "x"}, "Invalid literal for Fraction"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(spec, words):
    with pytest.raises(ConfigError) as caught:
        instantiate(spec, option="callbacks[2]")
    assert str(caught.value).startswith("callbacks[2]")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
