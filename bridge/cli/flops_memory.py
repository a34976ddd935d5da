"""The memory that a rank needs to train a batch of ``bridge flops``, with the recipe's own layout and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.config import Config
from bridge.flops import ConfigError, Plan
from bridge.planning.buffers import Optimizer
from bridge.planning.layouts import Layout
from bridge.planning.memory import Memory, fullest, memory
from bridge.text import with_unit


@dataclass(frozen=True)
class Held:
    """The fullest rank of each pipeline stage."""

    layout: Layout
    stages: tuple[Memory, ...]

    @property
    def fullest(self) -> Memory:
        """The fullest rank of all stages."""
        return fullest(self.stages)

    def text(self) -> str:
        """Two lines, largest parts first."""
        parts = sorted(self.fullest.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {_size(size)}" for name, size in parts if size >= self.fullest.total / 1000)
        where = f"of stage {self.fullest.stage} " if len(self.stages) > 1 else ""
        return f"memory of the fullest rank {where}({self.layout}): {_size(self.fullest.total)}\n  {listed}"

    def as_json(self) -> dict[str, Any]:
        """Bytes."""
        stages = [{"stage": one.stage, "bytes": one.total, "parts": one.parts} for one in self.stages]
        return {"layout": str(self.layout), "stages": stages, "not_known": list(self.fullest.unknown)}


def _size(size: int) -> str:
    return with_unit(size, "B", 3)


def held(config: Config, plan: Plan, devices: int | None, length: int | None) -> Held | None:
    """None for a model without a language model, or whose sizes do not fit together (``layout_problems`` says so)."""
    if plan.model.language is None:
        return None
    try:
        layout = Layout.of(config, devices)
        return Held(layout, memory(plan, layout, Optimizer.of(config), sequence_length=length))
    except ConfigError:
        return None
