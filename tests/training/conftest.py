"""Results of the scenarios in worker.py; each is run once a session, when the first test asks for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # launch.py, and worker.py in subprocesses


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Any]]:
    """``scenario(name, ranks)``: what the function of that name in worker.py returned."""
    from launch import HERE, launch

    folder = tmp_path_factory.mktemp("training")
    found: dict[str, dict[str, Any]] = {}

    def run(name: str, ranks: int) -> dict[str, Any]:
        if name not in found:
            result = launch(ranks, str(HERE / "worker.py"), name, str(folder))
            assert result.returncode == 0, result.stderr[-4000:]
            found[name] = json.loads((folder / f"{name}.json").read_text())
        return found[name]

    return run
