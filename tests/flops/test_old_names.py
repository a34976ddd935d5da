"""Names of an earlier release lead to where their contents have moved."""

import importlib
import re

import pytest

from tests.test_house import MOVED


def public(module):
    """What is defined there, by name."""
    own = vars(module)
    return {
        name: own[name] for name in own if not name.startswith("_") and getattr(own[name], "__module__", "") == module.__name__
    }


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_new_module(old):
    found = importlib.import_module(old)
    assert found.__doc__.startswith("Moved to ")
    assert found.__doc__.endswith("this name goes with the next release.")
    (first, *more) = re.findall(r":mod:`([\w.]+)`", found.__doc__)
    # A ledger's exhibit moved beside it.
    more += ["bridge.planning.exhibits.lora_notebook"] if "its exhibits" in found.__doc__ else []
    for new in (first, *more):
        theirs = public(importlib.import_module(new))
        assert theirs
        for name, value in theirs.items():
            assert getattr(found, name) is value, f"{old}.{name} is not {new}'s"


def test_an_old_name_has_nothing_of_its_own():
    for old in MOVED:
        assert public(importlib.import_module(old)) == {}
