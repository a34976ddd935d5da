"""Exact FLOPs of every recipe under every convention: `python -m tests.golden` writes tests/data/golden_flops.json anew.

Review the diff before committing it: each changed integer is a changed claim.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden_flops.json"
RECIPES = sorted(str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml"))
#: Long and short sequences together, and images where there is a tower.
LENGTHS = [512, 2048, 6144, 12000]
PATCHES = [400, 1600]
#: Training on one sequence of text, for docs/models.md.
SEQUENCE = 4096


def _plain(value: int | Fraction) -> int | str:
    return value if isinstance(value, int) else str(value)


def golden(recipe: str) -> dict[str, Any]:
    """Forward and training FLOPs of one batch under each convention, and the parameter counts."""
    cfg = load_recipe(str(ROOT / "recipes" / recipe))
    images = PATCHES if cfg.model.vision_config else []
    found: dict[str, Any] = {}
    for convention in CONVENTIONS:
        plan = compile_plan(cfg, convention)
        found[convention] = {
            passes: _plain(plan.flops(LENGTHS, images, passes)) for passes in ("forward", "training", "hardware")
        }
        found[convention][f"one_sequence_of_{SEQUENCE}"] = _plain(plan.flops([SEQUENCE]))
        found["parameters"], found["not_counted"] = plan.parameters(), list(plan.not_counted)
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({recipe: golden(recipe) for recipe in RECIPES}, indent=1) + "\n")
