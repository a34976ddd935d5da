"""Every recipe's integers under every convention are the ones that were reviewed."""

import json

import pytest

from tests.golden import GOLDEN, RECIPES, golden


@pytest.fixture(scope="module")
def reviewed():
    return json.loads(GOLDEN.read_text())


def test_every_recipe_has_its_entry(reviewed):
    assert sorted(reviewed) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden(recipe, reviewed):
    assert golden(recipe) == reviewed[recipe]
