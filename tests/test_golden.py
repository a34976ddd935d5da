"""Every recipe's integers under every convention are the ones that were reviewed."""

import json
from fractions import Fraction

import pytest

from bridge.flops.plan import PASSES
from tests.golden import GOLDEN, RECIPES, golden


@pytest.fixture(scope="module")
def reviewed():
    """Lines by recipe."""
    recipes = {}
    for name, value in json.loads(GOLDEN.read_text()).items():
        recipes.setdefault(name.split()[0], {})[name] = value
    return recipes


def test_every_recipe_has_its_entry(reviewed):
    assert sorted(reviewed) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden(recipe, reviewed):
    found, expected = golden(recipe), reviewed[recipe]
    # By line, so that a failure names the convention and the component.
    assert {name: found.get(name) for name in expected} == expected
    assert not found.keys() - expected.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_components_add_up(recipe, reviewed):
    conventions = {}
    for name, numbers in reviewed[recipe].items():
        if len(name.split()) == 3:
            conventions.setdefault(name.split()[1], {})[name.split()[2]] = numbers
    for components in conventions.values():
        total = components.pop("total")
        for column in (*PASSES, "one_sequence_of_4096"):
            assert sum(Fraction(numbers[column]) for numbers in components.values()) == Fraction(total[column])
