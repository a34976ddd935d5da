"""Microseconds per call of the public function (``num_floating_point_operations``) and of a compiled plan.

Configurations were used before, so what they say is known and only compared with a copy: the more fields, the longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from benchmarks.rows import Row, microseconds
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations

#: Six kinds of architecture: dense, sliding windows, latent attention with experts, experts, Mamba hybrid, delta-rule hybrid.
MODELS = {
    "llama3-8b": "dense",
    "gemma3-4b": "dense",
    "deepseek-v3": "dense",
    "qwen3-30b-a3b": "dense",
    "nemotron-h-8b": "hybrid",
    "qwen3-next-80b-a3b": "hybrid",
}
#: Microseconds that a call may take: public function, plan evaluation.
TARGETS = {"dense": (3.0, 1.5), "hybrid": (6.0, 3.0)}
BATCH = (4, 10_000, 40_000_000)


def rows() -> Iterator[Row]:
    for name, kind in MODELS.items():
        of_function, of_plan = TARGETS[kind]
        recipe = load_recipe(name)
        given = {key: value for key, value in vars(recipe.model).items() if value is not None}
        bare = SimpleNamespace(model=SimpleNamespace(**given))
        plan = compile_plan(recipe)
        vector = plan.measure([4096, 512])
        # Loop variables are bound on purpose: each call is measured before the next model.
        for label, cfg, target in (("", bare, of_function), (", all options", recipe, None)):
            num_floating_point_operations(cfg, *BATCH)
            spent = microseconds(lambda: num_floating_point_operations(cfg, *BATCH))  # noqa: B023
            yield Row(f"public function, {name}{label}", spent, "us", target, f"{len(vars(cfg.model))} fields")
        yield Row(f"plan.evaluate, {name}", microseconds(lambda: plan.evaluate(vector)), "us", of_plan)  # noqa: B023
        spent = microseconds(lambda: compile_plan(recipe), number=1, repeat=5)  # noqa: B023
        yield Row(f"compile_plan, {name}", spent / 1e3, "ms")
