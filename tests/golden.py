"""Exact FLOPs of every recipe under every convention: `python -m tests.golden` writes tests/data/golden_flops.json anew.

One line a recipe, convention and component, and one for their total. Review the diff before committing it: each changed line is
a changed claim.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.plan import PASSES, Plan

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden_flops.json"
RECIPES = sorted(str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml"))
#: Long and short sequences together, and images where there is a tower.
LENGTHS = [512, 2048, 6144, 12000]
PATCHES = [400, 1600]
#: Training on one sequence of text, for docs/models.md.
SEQUENCE = 4096


def golden(recipe: str) -> dict[str, Any]:
    """The lines of a recipe by name: FLOPs of one batch under each convention, parameters, what is not counted."""
    cfg = load_recipe(str(ROOT / "recipes" / recipe))
    images = PATCHES if cfg.model.vision_config else []
    found: dict[str, Any] = {}
    for convention in CONVENTIONS:
        plan = compile_plan(cfg, convention)
        found |= {f"{recipe} {convention} {name}": numbers for name, numbers in _by_component(plan, images).items()}
    return found | {f"{recipe} parameters": plan.parameters(), f"{recipe} not_counted": list(plan.not_counted)}


def _by_component(plan: Plan, images: list[int]) -> dict[str, dict[str, int | str]]:
    """Forward, training and hardware FLOPs of the batch and training FLOPs of one sequence, by component and in total."""
    batch, sequence = plan.measure(LENGTHS, images), plan.measure([SEQUENCE])
    views = {passes: (batch, passes) for passes in PASSES} | {f"one_sequence_of_{SEQUENCE}": (sequence, "training")}
    columns = {name: plan.evaluate_components(*view) | {"total": plan.evaluate(*view)} for name, view in views.items()}
    return {row: {name: _plain(column[row]) for name, column in columns.items()} for row in columns["training"]}


def _plain(value: int | Fraction) -> int | str:
    return value if isinstance(value, int) else str(value)


def write() -> None:
    """All recipes, one line each entry."""
    with ProcessPoolExecutor() as processes:
        entries = [entry for found in processes.map(golden, RECIPES) for entry in found.items()]
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
