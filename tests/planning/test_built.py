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


def hold(found: list[dict[str, Any]], name: str, ranks: int) -> None:
    cfg = built_cases.config(built_cases.case(name, ranks))
    plan, layout, optimizer = compile_plan(cfg), Layout.of(cfg, ranks), Optimizer.of(cfg)
    for rank, result in enumerate(found):
        mine = states(plan, layout, optimizer, rank=rank, local=True)
        held = {"weights": mine.weights, "gradients": mine.gradients, "optimizer": mine.optimizer}
        assert held == result["held"], rank


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("name", built_cases.ON_TWO_RANKS)
def test_two_ranks_hold_what_is_planned(built: Built, name: str) -> None:
    hold(built(2)[name], name, 2)


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("name", built_cases.ON_FOUR_RANKS)
def test_four_ranks_hold_what_is_planned(built: Built, name: str) -> None:
    hold(built(4)[name], name, 4)


def carry(found: list[dict[str, Any]], name: str, ranks: int) -> None:
    cfg = built_cases.config(built_cases.case(name, ranks))
    plan, layout, optimizer = compile_plan(cfg), Layout.of(cfg, ranks), Optimizer.of(cfg)
    to_experts = [0, 0]
    for rank, result in enumerate(found):
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


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("name", built_cases.ON_TWO_RANKS)
def test_two_ranks_carry_what_is_planned(built: Built, name: str) -> None:
    carry(built(2)[name], name, 2)


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("name", built_cases.ON_FOUR_RANKS)
def test_four_ranks_carry_what_is_planned(built: Built, name: str) -> None:
    carry(built(4)[name], name, 4)
