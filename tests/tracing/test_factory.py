"""Models by the functions that make them, found by ``package.module:factory`` in the current folder."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bridge.flops import ConfigError, compile_plan
from bridge.tracing.factory import from_factory

MODULE = """
import torch

def alone():
    return torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Linear(8, 3))

def named():
    return alone(), lambda point: {"input": torch.zeros(point.batch, 2 * point.length, dtype=torch.long)}

def pair():
    return "tiny", alone()

def three():
    return alone(), None, None
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "made_by_hand.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])


@pytest.mark.parametrize(("name", "tokens"), [("alone", 7), ("named", 2 * 7)])
def test_a_module_alone_or_beside_its_inputs(name, tokens):
    found = from_factory(f"made_by_hand:{name}")
    assert (found.name, found.not_counted) == (f"made_by_hand:{name}", ())
    assert compile_plan(found, "exact").flops([7], passes="forward") == 2 * tokens * 8 * 3


@pytest.mark.parametrize(("name", "kind"), [("pair", "str"), ("three", "tuple")])
def test_what_is_no_module_is_named(name, kind):
    with pytest.raises(ConfigError, match=f"--trace 'made_by_hand:{name}': it returned a {kind}; return a torch.nn.Module"):
        from_factory(f"made_by_hand:{name}")
