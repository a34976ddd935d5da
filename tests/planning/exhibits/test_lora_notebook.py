"""The published exercise to the last digit, in its own architecture and in the one that the model has."""

from __future__ import annotations

import pytest

from bridge.flops import ConfigError
from bridge.planning.exhibits.lora_notebook import (
    BUDGET,
    NOTEBOOK,
    TRUE,
    Budget,
    attention_block,
    differences,
    evaluation,
    forward_pass,
    generation,
    layer,
    ledger_of,
    mlp_block,
    norms_and_residuals,
    training,
)
from bridge.planning.ledger import OperationCost

L, D, H, DH, F, V = 24, 896, 14, 64, 4864, 151936


def test_anchors():
    assert attention_block(512).total == 5914223626
    assert mlp_block(512).total == 13415153664
    assert norms_and_residuals(512).total == 4597760
    assert layer(512).total == 19333975050
    assert [layer(512, rank).lora for rank in (0, 1, 4)] == [0, 4586496, 15593472]
    assert forward_pass(512).total == 603419129072
    assert forward_pass(512, 4).total == 603793372400
    assert generation(512, 512).total == 473172281951744
    step = training(512, lora_rank=4, batch_size=4, steps=1)
    assert (step.total, step.lora) == (7245520468800, 4490919936)
    assert forward_pass(512, architecture=TRUE).total == 530118227184


def table(n, r):
    """The rows of the published table: (additions, multiplications, divisions, exponentiations, square roots), counted."""
    rms = (n * (D - 1), 2 * n * D, n * D + n, 0, n)
    lora = (n * (D - 1) * r + n * (r - 1) * D + n * D, 2 * n * D * r + n * D, 0, 0, 0)
    attention = [
        (3 * n * D * D, 3 * n * D * D, 0, 0, 0),
        (2 * n * (D - 1) * D, 2 * n * D * D, 0, 0, 0),
        (H * n * n * (DH - 1), H * n * n * DH, 0, 0, 0),
        (0, 0, H * n * n, 0, 1),
        (H * n * (n - 1), 0, H * n * n, H * n * n, 0),
        (H * n * (n - 1) * DH, H * n * n * DH, 0, 0, 0),
        (n * (D - 1) * D, n * D * D, 0, 0, 0),
        *([lora, lora] if r else []),
    ]
    mlp = [
        (2 * n * (D - 1) * F, 2 * n * D * F, 0, 0, 0),
        (n * F, 0, n * F, n * F, 0),
        (0, n * F, 0, 0, 0),
        (n * (F - 1) * D, n * F * D, 0, 0, 0),
    ]
    residual = (n * D, 0, 0, 0, 0)
    return attention, mlp, [rms, rms, residual, residual], [rms, (n * V * D, n * V * D, 0, 0, 0)]


def weighted(rows, times=1):
    added, multiplied, divided, raised, rooted = (sum(column) * times for column in zip(*rows, strict=True))
    return (added, multiplied, divided, 10 * raised, 10 * rooted)


def columns(cost):
    return (cost.additions, cost.multiplications, cost.divisions, cost.exponentiations, cost.square_roots)


@pytest.mark.parametrize("n", [1, 2, 37, 512, 1024, 32768])
@pytest.mark.parametrize("r", [0, 1, 4, 8, 64])
def test_every_column(n, r):
    attention, mlp, around, end = table(n, r)
    assert columns(attention_block(n, r)) == weighted(attention)
    assert columns(mlp_block(n, r)) == weighted(mlp)
    assert columns(norms_and_residuals(n, r)) == weighted(around)
    whole = weighted((attention + mlp + around) * L + end)
    got = forward_pass(n, r)
    assert columns(got) == whole
    assert got.total == sum(whole)
    assert got.lora == (sum(weighted(attention[-2:])) * L if r else 0)
    assert got.total - forward_pass(n).total == got.lora


def test_training_and_evaluation():
    once = forward_pass(300, 8)
    assert training(300, 8, 4, 5) == 3 * 4 * 5 * once
    assert training(300, 8, 4, 0) == OperationCost()
    assert evaluation(300, 8, 4) == 4 * once
    assert training(300) == 3 * forward_pass(300)


@pytest.mark.parametrize("r", [0, 4])
def test_generation(r):
    passes = [forward_pass(n, r) for n in range(20, 27)]
    assert generation(20, 7, r) == sum(passes, OperationCost())
    drawn = generation(20, 7, r, stochastic=True)
    assert drawn.total - generation(20, 7, r).total == 7 * (10 * V + (V - 1) + V)
    assert drawn.lora == generation(20, 7, r).lora
    assert generation(20, 0, r) == OperationCost()


# ---- the true architecture -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 100, 512])
@pytest.mark.parametrize("r", [0, 4])
def test_the_difference_is_itemised(n, r):
    found = {item.part: item.change for item in differences(n, r)}
    assert sum(found.values()) == forward_pass(n, r, architecture=TRUE).total - forward_pass(n, r).total
    narrower = n * 2 * D * (D - 128) * L
    assert found["linear_k"] == found["linear_v"] == -narrower
    dense = n * D * (2 * D - 1) * L
    assert (found["rope_query"], found["rope_key"]) == (3 * n * D * L - dense, 3 * n * 128 * L - dense)
    assert found["output_layer"] == -n * V
    assert set(found) - {"lora_B", "lora_sum"} == {"linear_k", "linear_v", "rope_query", "rope_key", "output_layer"}
    assert ("lora_B" in found) == bool(r)


def test_full_training_is_three_forward_passes():
    assert training(100, 0, 2, 3, architecture=TRUE) == 3 * 6 * forward_pass(100, architecture=TRUE)


def test_frozen_weights_have_no_gradient():
    """Of a frozen matmul forward and dgrad run, of an adapter all three; below the first adapter nothing needs a gradient."""
    ledger = ledger_of(TRUE, 4)
    entries = {passes: {(e.component, e.name): e.cost.total for e in ledger.entries([50], passes=passes)}
               for passes in ("forward", "training")}  # fmt: skip
    forward, trained = entries["forward"], entries["training"]
    for name in ("linear_fc1_gate", "linear_fc1_up", "linear_fc2"):
        assert trained["mlp", name] == 2 * forward["mlp", name]
    for name in ("linear_q", "linear_k", "linear_v"):
        assert trained["self_attention", name] * L == forward["self_attention", name] * (2 * L - 1)
    assert trained["adapters", "lora_B"] == 3 * forward["adapters", "lora_B"]
    assert trained["adapters", "lora_A"] * L == forward["adapters", "lora_A"] * (3 * L - 1)
    assert training(50, 4, architecture=TRUE).total < 0.7 * training(50, 4).total


def test_generation_with_a_cache():
    assert generation(20, 1, architecture=TRUE) == forward_pass(20, architecture=TRUE)
    assert generation(20, 11, architecture=TRUE) == forward_pass(20, architecture=TRUE) + ledger_of(TRUE, 0).decode(20, 10)
    assert generation(20, 0, architecture=TRUE) == OperationCost()
    assert generation(512, 512, architecture=TRUE).total < generation(512, 512).total / 400


# ---- the budget ------------------------------------------------------------------------------------------------------


def test_budget():
    step = training(512, 4, 4, 1)
    budget = Budget().spend(training(512, 4, 4, 1000))
    assert budget.limit == 10**17
    assert budget.spent == 1000 * step.total
    assert budget.percent == 100 * 7245520468800000 / 10**17
    assert budget.share(step) == pytest.approx(0.0072455204688)
    assert budget.steps_left(step) == (10**17 - 1000 * step.total) // step.total == 12801
    assert Budget().steps_left(step) == 13801
    over = budget.spend(training(512, 4, 4, 20000))
    assert over.remaining == 10**17 - 21000 * step.total
    assert over.percent == 100 * 21000 * step.total / 10**17
    assert over.steps_left(step) == over.steps_left(OperationCost(additions=1)) == 0
    with pytest.raises(ConfigError, match="costs nothing"):
        budget.steps_left(OperationCost())


def test_a_budget_is_positive_and_is_spent_to_the_last():
    assert (BUDGET, Budget().remaining, Budget().percent) == (10**17, 10**17, 0.0)
    budget = Budget(10, 7)
    three = OperationCost(additions=2, square_roots=1)
    assert (budget.remaining, budget.steps_left(three), budget.spend(three)) == (3, 1, Budget(10, 10))
    assert budget.steps_left(OperationCost(divisions=4)) == 0
    assert budget.share(three) == 30.0
    with pytest.raises(ConfigError, match="the budget must be at least 1"):
        Budget(0)
    assert Budget(1).remaining == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forward_pass(0), "tokens=0 must be a positive integer"),
        (lambda: forward_pass(5, -1), "lora_rank=-1 must be an integer of at least 0"),
        (lambda: training(5, 1, 0), "batch_size=0 must be"),
        (lambda: training(5, 1, 1, -1), "steps=-1 must be"),
        (lambda: evaluation(5, 1, 0), "batch_size=0 must be"),
        (lambda: generation(0, 5), "tokens_given=0 must be"),
        (lambda: generation(5, -1), "tokens_generated=-1 must be"),
    ],
)
def test_impossible_numbers(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_notebook_is_the_default():
    assert forward_pass(9) == forward_pass(9, architecture=NOTEBOOK)
