"""Weights, gradients, optimizer states and the bytes of collectives of megatron-core models built over gloo, rank by rank.

Both stand here, since building the models takes minutes: a worker of a parallel run has files of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import built_cases
import pytest

from bridge.flops import compile_plan
from bridge.flops.plan import Plan
from bridge.planning.buffers import Optimizer
from bridge.planning.communication import communication
from bridge.planning.layouts import Layout
from bridge.planning.memory import states

Built = Callable[[int], dict[str, Any]]
#: megatron-core's group -> the dimension that it belongs to.
DIMENSIONS = {
    "expert tensor": "expert",
    "expert tensor and model": "expert",
    "data of experts": "data",
    "pipeline's ends": "pipeline",
}


BUILT = [(ranks, name) for ranks, names in ((2, built_cases.ON_TWO_RANKS), (4, built_cases.ON_FOUR_RANKS)) for name in names]

pytestmark = [pytest.mark.all, pytest.mark.slow, pytest.mark.parametrize(("ranks", "name"), BUILT)]


def plan_of(name: str, ranks: int) -> tuple[Plan, Layout, Optimizer]:
    cfg = built_cases.config(built_cases.case(name, ranks))
    return compile_plan(cfg), Layout.of(cfg, ranks), Optimizer.of(cfg)


def test_ranks_hold_what_is_planned(built: Built, ranks: int, name: str) -> None:
    plan, layout, optimizer = plan_of(name, ranks)
    for rank, result in enumerate(built(ranks)[name]):
        mine = states(plan, layout, optimizer, rank=rank, local=True)
        held = {"weights": mine.weights, "gradients": mine.gradients, "optimizer": mine.optimizer}
        assert held == result["held"], rank


def test_ranks_carry_what_is_planned(built: Built, ranks: int, name: str) -> None:
    plan, layout, optimizer = plan_of(name, ranks)
    to_experts = [0, 0]
    for rank, result in enumerate(built(ranks)[name]):
        carried: dict[str, int] = defaultdict(int)
        for key, amount in result["bytes"].items():
            group, _, operation = key.partition("/")
            if operation in ("send", "recv") and layout.stages == 1:  # messages from one rank to another name no group
                group = "context"
            carried[f"{DIMENSIONS.get(group, group)}/{operation}"] += amount
        planned: dict[str, int] = defaultdict(int)
        for one in communication(
            plan, layout, optimizer, sequence_length=built_cases.SEQUENCE, stage=layout.stage_of(rank), local=True
        ):
            planned[f"{one.dimension}/{one.operation}"] += one.bytes
        carried.pop("other/all_reduce", None)  # the loss of a step, over all ranks
        # Each rank has as many tokens for experts as another, but not as many of another's.
        for number, amounts in enumerate((carried, planned)):
            to_experts[number] += amounts.pop("expert/all_to_all", 0)
        assert planned == carried, rank
    assert to_experts[0] == to_experts[1]
