"""Totals over restarts: exact, never two conventions in one number."""

from fractions import Fraction

import pytest

from bridge.flops import compile_plan
from bridge.metrics.place import Place
from bridge.metrics.totals import Totals, whole
from bridge.metrics.vector import VectorLayout

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "vocab_size": 128}
WINDOWED = {**MODEL, "window_size": (15, 0)}
OLD, NEW = [100, 7, 33], [64, 1]


def totals(model=MODEL, convention="megatron", *, replicas=1):
    plan = compile_plan(model, convention=convention)
    layout = VectorLayout(plan.statistics, Place(replicas=replicas))
    return plan, layout.names, Totals(plan, layout)


def vector(plan, names, lengths):
    named = dict(zip((s.name for s in plan.statistics), plan.measure(lengths), strict=True))
    named |= {"tokens": sum(lengths), "sequences": len(lengths), "micro_batches": 1, "data_wait_ns": 5}
    return [named.get(name, 0) for name in names]


def saved(model=MODEL, convention="megatron"):
    plan, names, before = totals(model, convention, replicas=4)
    before.add(vector(plan, names, OLD))
    return before.state_dict()


@pytest.mark.parametrize(("flops", "integer"), [(10**30, 10**30), (Fraction(10**30, 3), 10**30 // 3), (Fraction(7), 7)], ids=str)
def test_totals_are_integers(flops, integer):
    assert whole(flops) == integer
    assert type(whole(flops)) is int


def test_a_restart_continues_to_the_integer_on_another_layout():
    plan, names, after = totals(replicas=2)
    assert after.load_state_dict(saved()) is None
    after.add(vector(plan, names, NEW))
    assert after.flops == plan.flops(OLD + NEW)
    assert after.tokens == sum(OLD + NEW)
    assert after["sequences"] == len(OLD + NEW)
    assert after.complete


def test_the_state_is_plain_integers_about_the_run_as_a_whole():
    plan, _, _ = totals()
    state = saved()
    assert state["total_flops"] == plan.flops(OLD)
    assert state["total_tokens"] == sum(OLD)
    assert all(type(value) is int for value in state["statistics"].values())
    assert not any(name.startswith(("data_wait", "replica_work", "failures")) for name in state["statistics"])


def test_another_convention_scores_the_old_work_again():
    megatron, _, _ = totals()
    state = saved(convention="executed")
    plan, names, after = totals(convention="megatron")
    assert "executed" in after.load_state_dict(state)
    after.add(vector(plan, names, NEW))
    assert after.flops == megatron.flops(OLD + NEW)


def test_another_convention_that_needs_other_statistics_has_no_total_rather_than_one_of_the_last_steps():
    plan, names, after = totals(convention="exact")
    assert "total_flops is not reported" in after.load_state_dict(saved(convention="megatron"))
    after.add(vector(plan, names, NEW))
    assert after.flops is None
    assert after.tokens == sum(OLD + NEW)
    again = totals(convention="exact")[2]
    assert again.load_state_dict(after.state_dict()) is None
    assert (again.flops, again.tokens) == (None, sum(OLD + NEW))


@pytest.mark.parametrize("model", [WINDOWED, {**MODEL, "num_layers": 3}])
def test_another_model_keeps_what_was_done(model):
    old, _, _ = totals()
    plan, names, after = totals(model)
    assert "not the checkpoint's" in after.load_state_dict(saved())
    after.add(vector(plan, names, NEW))
    assert after.flops == old.flops(OLD) + plan.flops(NEW)
    assert after.tokens == sum(OLD + NEW)
    # And once more, now with a part that is carried.
    again = totals(model)[2]
    assert again.load_state_dict(after.state_dict()) is None
    assert (again.flops, again.tokens) == (after.flops, after.tokens)


def test_a_total_that_misses_work_is_never_completed():
    _, _, before = totals()
    before.complete = False
    _, _, after = totals()
    assert "incomplete" in after.load_state_dict(before.state_dict())
    assert not after.complete


def test_a_model_without_a_price_keeps_its_tokens():
    layout = VectorLayout()
    before = Totals(None, layout)
    before.add([9 if name == "tokens" else 0 for name in layout.names])
    after = Totals(None, layout)
    after.load_state_dict(before.state_dict())
    assert after.flops is None
    assert after.tokens == 9


def unread(names):
    return [1 if name == "unread_micro_batches" else 0 for name in names]


def test_a_lower_bound_stays_one():
    plan, names, before = totals()
    before.add(vector(plan, names, OLD))
    assert before.state_dict()["complete"] is True
    before.add(unread(names))
    state = before.state_dict()
    assert (state["complete"], state["failed"], state["total_flops"]) == (False, False, plan.flops(OLD))
    assert state["statistics"]["unread_micro_batches"] == 1
    for model, convention in ((MODEL, "megatron"), (WINDOWED, "megatron")):
        plan, names, after = totals(model, convention)
        after.load_state_dict(state)
        after.add(vector(plan, names, NEW))
        assert after.complete
        assert after.lower_bound
        assert after.flops == totals()[0].flops(OLD) + plan.flops(NEW)
        assert after.state_dict()["complete"] is False


def test_nothing_read_is_no_total():
    plan, names, after = totals()
    assert (after.flops, after.tokens) == (0, 0)
    after.add(unread(names))
    assert (after.flops, after.tokens) == (None, None)
    again = totals()[2]
    again.load_state_dict(after.state_dict())
    again.add(vector(plan, names, NEW))
    assert (again.flops, again.tokens, again.lower_bound) == (plan.flops(NEW), sum(NEW), True)


def test_an_old_checkpoint_that_misses_a_rank_has_no_totals():
    state = {**saved(), "complete": False}
    del state["failed"]
    _, _, after = totals()
    assert "incomplete" in after.load_state_dict(state)
    assert not after.complete
