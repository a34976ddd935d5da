"""Lengths in any form a caller holds them in: the same Python integers, or one sentence."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan, statistics
from bridge.flops.lengths import MANY, amount, batch_lengths, exact, gathered, whole, whole_lengths
from bridge.flops.statistics import Histogram, Statistic
from tests.metrics.test_batch_statistics import STATISTICS

#: Two layers of width 4 with MLP 8, one head, vocabulary 10: 2 x (4 x 12 + 16 + 64) + 40 multiply-accumulates per token.
MODEL = {"num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10}
TOKEN, PAIR = 2 * (4 * 12 + 16 + 64) + 40, 2 * 2 * 4
#: The same behind an encoder of one layer.
TRANSLATOR = MODEL | {"encoder_num_layers": 1, "position_embedding_type": "none"}


def by_hand(lengths):
    return 6 * sum(s * TOKEN + s * (s + 1) // 2 * PAIR for s in lengths)


FORMS = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda lengths: (s for s in lengths),
    "dictionary's values": lambda lengths: dict(enumerate(lengths)).values(),
    **{f"numpy {name}": lambda lengths, name=name: np.array(lengths, name)
       for name in ("int16", "int32", "int64", "uint16", "uint32", "uint64", ">i4", "float32", "float64", "object")},
    "list of numpy integers": lambda lengths: [np.int32(s) for s in lengths],
    "list of tensors": lambda lengths: [torch.tensor(s) for s in lengths],
    "list of integral fractions": lambda lengths: [Fraction(s) for s in lengths],
    "every second of an array": lambda lengths: np.repeat(np.array(lengths), 2)[::2],
    **{f"tensor {kind}": lambda lengths, kind=kind: torch.tensor(lengths, dtype=kind)
       for kind in (torch.int32, torch.int64, torch.float64)},
}  # fmt: skip


@pytest.mark.parametrize("lengths", [[], [3], [5, 1, 4], [7, 7, 12] * MANY], ids=["none", "one", "few", "many"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_integers(form, lengths):
    plan = compile_plan(MODEL, "exact")
    assert plan.flops(FORMS[form](lengths)) == by_hand(lengths)
    vector = plan.measure(FORMS[form](lengths))
    assert set(map(type, vector)) == {int}
    assert sum(plan.breakdown(FORMS[form](lengths)).values()) == by_hand(lengths)
    assert sum(row.forward + row.dgrad + row.wgrad for row in plan.table(FORMS[form](lengths))) == by_hand(lengths)


def test_ranges():
    assert compile_plan(MODEL, "exact").flops(range(1, 1000, 2)) == by_hand(range(1, 1000, 2))


@pytest.mark.parametrize("recipe", ["llama3-70b", "llama3.1-405b"])
def test_what_no_int64_holds(recipe):
    plan = compile_plan(load_recipe(recipe, validate=False), "exact")
    expected = 1024 * plan.flops([8192])
    assert expected > 2**61
    assert plan.flops(np.full(1024, 8192)) == expected
    assert plan.flops(np.full(4, 8192, np.int32), passes="forward") * 256 * 3 == expected
    vector = plan.measure([8192] * 1024)
    for form in (np.array, torch.tensor, lambda v: [np.int64(x) for x in v]):
        assert plan.evaluate(form(vector)) == expected
        assert sum(plan.evaluate_components(form(vector)).values()) == expected
        assert sum(row.forward + row.dgrad + row.wgrad for row in plan.tabulate(form(vector))) == expected


SENTENCES = {
    "sequence_lengths=-5(.0)? must not be negative": [[-5], [3, -5], np.array([-5]), [-5.0], np.array([1] * MANY + [-5])],
    "<int> must not be negative": [[-(10**5000)]],
    "sequence_lengths=1.5 must be a whole number": [[1.5], np.array([4, 1.5]), torch.tensor([1.5]), (s for s in [1.5])],
    "must be a whole number": [[Fraction(1, 2)], [Decimal("0.1")], np.full(MANY, 0.5)],
    "must be a finite number": [
        [True], np.array([True] * MANY), torch.tensor([False]), ["4096"], [None], [float("nan")], [float("inf")], [[4096]],
        [np.array([1, 2])], [torch.ones(2, 2)], [object()], [1j], np.ma.array([1, 2], mask=[0, 1]), [np.nan] * MANY, [b"4"],
        [3, "x" * 10**6],
    ],
    "sequence_lengths must be a list of whole numbers": [
        4096, None, "4096", b"4096", {4096: 1}, {4096}, np.int64(4096), np.array(4096), torch.tensor(4096), np.ones((2, 2), int),
        torch.ones(2, 2, dtype=torch.int64), 1.5, "x" * 10**6,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "lengths"), [(sentence, lengths) for sentence, cases in SENTENCES.items() for lengths in cases]
)
def test_what_are_no_lengths_gets_one_sentence(sentence, lengths):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compile_plan(MODEL, "exact").flops(lengths)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["image_patches", "encoder_lengths", "audio_frames"])
def test_the_other_lengths_are_checked_too(name):
    plan = compile_plan(MODEL, "exact")
    for view in (plan.measure, plan.flops, plan.breakdown, plan.table):
        with pytest.raises(ConfigError, match=f"{name}=-5 must not be negative"):
            view([8], **{name: [-5]})


def test_one_encoder_length_a_sequence():
    with pytest.raises(ConfigError, match="encoder_lengths has 1 entries, sequence_lengths 2: give one per sequence"):
        compile_plan(TRANSLATOR, "exact").flops([3, 4], encoder_lengths=[5])


@pytest.mark.parametrize("many", [1, MANY])
@pytest.mark.parametrize("form", ["list", "numpy int32", "tensor torch.int64"])
def test_pairs_stay_in_order(form, many):
    queries, keys = [3, 10, 2] * many, [7, 1, 4] * many
    lengths = batch_lengths(FORMS[form](queries), (), FORMS[form](keys))
    assert Statistic("length", "cross").sum(lengths["cross"]) == many * (3 * 7 + 10 * 1 + 2 * 4)
    assert Statistic("square", "joint").sum(lengths["joint"]) == many * (10**2 + 11**2 + 6**2)
    assert Statistic("length", "encoder").sum(lengths["encoder"]) == many * 12
    assert compile_plan(TRANSLATOR, "exact").flops(FORMS[form](queries), encoder_lengths=FORMS[form](keys)) == many * sum(
        compile_plan(TRANSLATOR, "exact").flops([q], encoder_lengths=[k]) for q, k in zip(queries[:3], keys[:3], strict=True)
    )


@pytest.mark.parametrize("many", [1, MANY])
def test_an_encoder_reads_the_positions_of_audio_where_nothing_else_is_given(many):
    lengths = batch_lengths([2, 3] * many, audio_frames=np.array([9, 10] * many))
    assert Statistic("length", "encoder").sum(lengths["encoder"]) == many * (5 + 5)
    assert Statistic("length", "cross").sum(lengths["cross"]) == many * (2 * 5 + 3 * 5)


@given(
    st.lists(st.integers(0, 40) | st.integers(0, 2**21) | st.integers(0, 2**40), max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
def test_many_lengths_are_counted_by_value_exactly(lengths, times, as_array):
    every = lengths * MANY * times
    found = gathered(np.array(every, np.int64) if as_array else every)
    assert isinstance(found, Histogram if lengths else (list, np.ndarray))
    for statistic in STATISTICS:
        assert statistic.sum(found) == MANY * times * sum(map(statistic.of, lengths))


def test_a_statistic_that_grows_faster_than_the_square_keeps_every_digit(monkeypatch):
    monkeypatch.setitem(statistics._FORMULAS, "cube", lambda s: s * s * s)
    found = gathered(np.array([100_000] * 20_001, np.int64))
    assert Statistic("cube").sum(found) == 20_001 * 100_000**3


def test_numbers_of_any_library():
    for three in (3, 3.0, np.int8(3), np.float16(3), Fraction(3), Decimal(3), torch.tensor(3), torch.ones(1) * 3, np.array([3])):
        found = exact("x", three), amount("x", three), whole("x", three)
        assert found == (3, 3, 3)
        assert set(map(type, found)) == {int}
    assert exact("x", -0.5) == Fraction(-1, 2)
    assert amount("x", np.float64(0.5)) == Fraction(1, 2)
    assert whole_lengths("x", np.array([2**63, 1] * MANY, np.uint64)) == [2**63, 1] * MANY
