"""Models that the planning is held against, built once a session when the first test asks for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: Cases of one launch.
AT_ONCE = 6
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]  # built_cases.py, saved_cases.py; launch.py


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """``built(ranks)``: case -> rank by rank, what it holds and what its collectives carried (see built_worker.py)."""
    import built_cases
    from launch import launch

    cases = {2: built_cases.ON_TWO_RANKS, 4: built_cases.ON_FOUR_RANKS}
    folder = tmp_path_factory.mktemp("built")
    found: dict[int, dict[str, Any]] = {2: {}, 4: {}}

    def run(ranks: int) -> dict[str, Any]:
        # Several launches: the groups of a case leave gloo's threads behind, and a process of a thousand of them crawls.
        while left := [name for name in cases[ranks] if name not in found[ranks]][:AT_ONCE]:
            wanted, results = folder / "cases.json", folder / "results.json"
            wanted.write_text(json.dumps({name: built_cases.case(name, ranks) for name in left}))
            done = launch(ranks, str(HERE / "built_worker.py"), str(wanted), str(results), timeout=300)
            assert done.returncode == 0, done.stderr[-4000:]
            found[ranks] |= json.loads(results.read_text())
        return found[ranks]

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Case -> module -> bytes that it keeps for the backward pass (see saved_worker.py)."""
    from launch import launch
    from saved_cases import CASES

    folder = tmp_path_factory.mktemp("saved")
    (folder / "cases.json").write_text(json.dumps(CASES))
    done = launch(1, str(HERE / "saved_worker.py"), str(folder / "cases.json"), str(folder / "results.json"))
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, int]] = json.loads((folder / "results.json").read_text())
    return found
