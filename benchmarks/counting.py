"""What counting costs: microseconds per call of the public function, of a compiled plan, and of adding a packed micro-batch.

    python benchmarks/counting.py [--json FILE]

Each figure is the fastest of many repetitions in one process, so that other processes disturb it least.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.moments import Moments
from bridge.training.utils.flop_utils import num_floating_point_operations

#: Six kinds of architecture: dense, sliding windows, latent attention with experts, experts, Mamba hybrid, delta-rule hybrid.
MODELS = ("llama3-8b", "gemma3-4b", "deepseek-v3", "qwen3-30b-a3b", "nemotron-h-8b", "qwen3-next-80b-a3b")
#: Microseconds that a call may take (public function, plan evaluation), for dense and for hybrid models.
TARGETS = {"dense": (3.0, 1.5), "hybrid": (6.0, 3.0)}
HYBRIDS = ("nemotron-h-8b", "qwen3-next-80b-a3b")


def microseconds(call: Callable[[], Any], number: int = 1000, repeat: int = 50) -> float:
    """The fastest of ``repeat`` means over ``number`` calls."""
    return min(timeit.repeat(call, number=number, repeat=repeat)) / number * 1e6


def measure(name: str) -> dict[str, Any]:
    """The calls of one model, on a configuration object that was used before."""
    recipe = load_recipe(name)
    bare = SimpleNamespace(
        model=SimpleNamespace(**{key: value for key, value in vars(recipe.model).items() if value is not None})
    )
    plan = compile_plan(recipe)
    vector = plan.measure([4096, 512])
    batch = (4, 10000, 40000000)
    num_floating_point_operations(bare, *batch)
    num_floating_point_operations(recipe, *batch)
    kind = "hybrid" if name in HYBRIDS else "dense"
    function_target, plan_target = TARGETS[kind]
    return {
        "model": name,
        "kind": kind,
        "num_floating_point_operations": microseconds(lambda: num_floating_point_operations(bare, *batch)),
        "num_floating_point_operations, recipe": microseconds(lambda: num_floating_point_operations(recipe, *batch)),
        "plan.evaluate": microseconds(lambda: plan.evaluate(vector)),
        "moments": microseconds(lambda: plan.measure_moments(Moments.of(*batch))),
        "compile_plan": microseconds(lambda: compile_plan(recipe), number=1, repeat=3),
        "target": function_target,
        "plan target": plan_target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = [measure(name) for name in MODELS]
    table = Table("model", "public function", "on our Config", "target", "plan.evaluate", "target", "compile, ms")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['num_floating_point_operations']:.2f}",
            f"{row['num_floating_point_operations, recipe']:.2f}",
            f"{row['target']:.1f}",
            f"{row['plan.evaluate']:.2f}",
            f"{row['plan target']:.1f}",
            f"{row['compile_plan'] / 1000:.1f}",
        )
    table.title = "microseconds per call"
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
