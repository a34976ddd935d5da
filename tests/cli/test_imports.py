"""What a command imports: nobody waits for a package that his command does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
before = set(sys.modules)
from bridge.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
#: omegaconf brings yaml and, from 2.4 on, attr; yaml's C parser names itself after its Cython.
READING = {"omegaconf", "yaml", "attr", "antlr4"}


def imported(line: str) -> set[str]:
    """The modules that a command imports, those of the standard library aside."""
    command = [sys.executable, "-c", CODE, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    packages = {name: name.split(".")[0] for name in done.stderr.split()}
    return {name for name, package in packages.items() if package not in sys.stdlib_module_names and "cython" not in package}


def test_help_imports_the_parser_alone():
    cli = {f"bridge.cli{name}" for name in ("", ".hints", ".main", ".parser")}
    assert imported("--help") == {"bridge", *cli, "bridge.flops", "bridge.flops.errors"}


@pytest.mark.parametrize(
    ("line", "packages"),
    [
        ("flops tiny", {"rich", "config", "flops", "hardware", "planning", "text", *READING}),
        ("flops --help", {"rich", "config", "flops", "hardware", "planning", "text"}),
        ("plan --help", {"rich", "config", "flops", "hardware", "planning", "text"}),
        ("recipes", {"rich", "config", "flops", "hardware", "planning"}),
        ("devices", {"rich", "flops", "hardware", "planning"}),
    ],
)
def test_a_command_imports_what_it_needs(line, packages):
    found = imported(line)
    rooms = {name.removeprefix("bridge.").split(".")[0] for name in found} - {"bridge", "cli"}
    assert rooms <= packages
    assert {"rich", "hardware", "planning"} <= rooms
    assert not {name for name in found if name.startswith(("bridge.config.sources", "bridge.planning.provenance"))}
