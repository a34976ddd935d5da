"""What ``bridge integrations`` says is what the documentation says and what is there."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import documented
import pytest

from bridge.cli.main import main
from bridge.integrations.catalogue import ADAPTERS, Adapter

ADAPTERS_FOLDER = Path(__file__).parents[2] / "bridge" / "integrations"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.framework)
def test_lines_are_those_of_the_documentation(adapter):
    assert adapter.lines in documented.DOCUMENT.read_text().split(f"\n## {adapter.framework}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.framework)
def test_lines_import_what_the_adapter_has(adapter):
    module = ast.parse((ADAPTERS_FOLDER / f"{adapter.module}.py").read_text())
    defined = {node.name for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    if adapter.lines.startswith("torchrun"):
        assert f"-m bridge.integrations.{adapter.module} " in adapter.lines
        assert "main" in defined
        return
    imported = [node for node in ast.walk(ast.parse(adapter.lines)) if isinstance(node, ast.ImportFrom)]
    (ours,) = [node for node in imported if node.module == f"bridge.integrations.{adapter.module}"]
    assert {alias.name for alias in ours.names} <= defined


def test_the_command(capsys):
    assert main(["integrations", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["framework"] for row in rows] == [adapter.framework for adapter in ADAPTERS]
    torch = importlib.import_module("torch")
    assert rows[-1] == {
        "version": 1,
        "framework": "Your own loop",
        "installed": torch.__version__,
        "adapter": "bridge.integrations.plain",
        "lines": ADAPTERS[-1].lines,
    }
    for name in ("Lightning", "lightning", "lightning_trainer"):
        assert main(["integrations", name]) == 0
        assert capsys.readouterr().out == next(a.lines for a in ADAPTERS if a.framework == "Lightning") + "\n"
    assert main(["integrations"]) == 0
    assert "bridge.integrations.lightning_trainer" in capsys.readouterr().out


def test_an_unknown_framework_is_one_sentence(capsys):
    assert main(["integrations", "megatron"]) == 2
    assert "'megatron' is not a framework with an adapter (did you mean Megatron-LM?); choose from" in capsys.readouterr().err


def test_versions(monkeypatch):
    assert Adapter("x", "plain", "pytest", "pytest", "").version() == pytest.__version__
    assert Adapter("x", "plain", "", "pytest", "").version() == ""  # a checkout on the path
    assert Adapter("x", "plain", "no-such-package", "pytest", "").version() == ""
    assert Adapter("x", "plain", "no-such-package", "no_such_package.inner", "").version() is None
