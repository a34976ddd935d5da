"""Terms: what they count of parameters, what becomes of them inside a module, and the work of a softmax by execution."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops.conventions import EXACT
from bridge.flops.elementwise import NOTHING, Operations
from bridge.flops.statistics import PATCHES, SEQUENCES, TOKENS, Over, Statistic
from bridge.flops.terms import (
    CAUSAL,
    Context,
    Kind,
    Pass,
    Role,
    Term,
    TermPlace,
    core,
    elementwise,
    join,
    norm,
    onto,
    softmax,
    table,
)

# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "total", "active"),
    [
        ({}, 15, 15),
        ({"bias": 5}, 20, 20),
        ({"copies": 8, "active_copies": 2}, 120, 30),
        ({"copies": 8, "active_copies": 2, "bias": 5}, 160, 40),
        ({"weight": False}, 0, 0),
        ({"weight": False, "bias": 5}, 5, 5),
        # A tied weight counts where it is; a bias is never tied.
        ({"tied": "embedding.word_embeddings"}, 0, 0),
        ({"tied": "embedding.word_embeddings", "bias": 5, "copies": 2}, 10, 5),
        ({"times": Fraction(2)}, 15, 15),
    ],
)
def test_parameters(fields, total, active):
    term = Term("w", "part", 3, 5, **fields)
    assert (term.parameters, term.active_parameters) == (total, active)


@pytest.mark.parametrize(("weight", "bias", "trains"), [(True, 0, True), (False, 0, False), (False, 1, True), (True, 1, True)])
def test_what_has_anything_to_train(weight, bias, trains):
    assert Term("w", "part", 3, 5, weight=weight, bias=bias).has_weight is trains
    assert Term("w", "part", 3, 5, tied="x").has_weight  # elsewhere, but it is a weight


# ---- inside a module -------------------------------------------------------------------------------------------------

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3),
        "k": st.integers(0, 9),
        "times": st.fractions(),
        "path": st.text(max_size=5),
        "place": st.sampled_from([0, 3, *TermPlace]),
        "roles": st.sampled_from([Role.NONE, Role.MLP | Role.EMBEDDING]),
        "passes": st.sampled_from(list(Pass)),
    },
)


@given(FIELDS, FIELDS)
def test_changed_is_replace(first, second):
    term = Term(**{"name": "w", "component": "part", "k": 3, "n": 5} | first)
    before = dict(vars(term))
    assert term.changed(**second) == replace(term, **second)
    assert hash(term.changed(**second)) == hash(replace(term, **second))
    assert vars(term) == before
    with pytest.raises(FrozenInstanceError):
        term.changed(**second).k = 4


def test_a_path_grows_in_front():
    term = Term("linear_fc1", "mlp", 3, 5, roles=Role.MLP)
    inner = term.under("mlp.", Role.EXPERTS)
    assert (inner.path, inner.roles) == ("mlp.linear_fc1", Role.MLP | Role.EXPERTS)
    outer = inner.under("decoder.layers.3.", place=3)
    assert (outer.path, outer.roles, outer.place) == ("decoder.layers.3.mlp.linear_fc1", Role.MLP | Role.EXPERTS, 3)
    assert (term.path, term.place) == ("", TermPlace.LAST)
    assert inner.marked(Role.IMAGES).roles == Role.MLP | Role.EXPERTS | Role.IMAGES


def test_a_layer_on_another_stream():
    moved = onto(Term("w", "part", 3, 5, inputs=("normed", "key"), outputs=("hidden",)), stream="audio", tokens=PATCHES)
    assert (moved.inputs, moved.outputs, moved.rows) == (("audio.normed", "audio.key"), ("audio.hidden",), PATCHES)
    # Terms whose rows are not tokens keep them.
    for rows in (CAUSAL, SEQUENCES, Statistic("square")):
        assert onto(Term("w", "part", 3, 5, rows), stream="audio", tokens=PATCHES).rows == rows


# ---- kinds of terms --------------------------------------------------------------------------------------------------


def test_a_norm_is_a_vector():
    plain = norm("q_layernorm", 16, "attention", source="query", to="normed", times=4)
    assert (plain.parameters, plain.kind, plain.path, plain.times) == (16, Kind.NORM, "q_layernorm", Fraction(4))
    assert (plain.inputs, plain.outputs, plain.rows) == (("query",), ("normed",), TOKENS)
    both = norm("norm", 16, "attention", source="a", to="b", bias=True, kind=Kind.LATENT_NORM, rows=PATCHES)
    assert (both.parameters, both.bias, both.kind, both.rows, both.times) == (32, 16, Kind.LATENT_NORM, PATCHES, Fraction(1))
    assert Term("w", "part", 3, 5).times == Fraction(1)


def test_a_core_has_no_weight_and_two_operands():
    term = core("query_key", "core", CAUSAL, head_size=8, heads=3, inputs=("query", "key"), output="scores", allowed=Pass.FORWARD)
    assert (term.k, term.n, term.rows, term.kind, term.allowed) == (8, 3, CAUSAL, Kind.CORE, Pass.FORWARD)
    assert (term.inputs, term.outputs, term.parameters, term.has_weight) == (("query", "key"), ("scores",), 0, False)


def test_a_table_a_join_and_other_work():
    added = table("positions", "embedding", 7, 3, source="hidden", to=("hidden",))
    assert (added.parameters, added.inputs, added.outputs, added.kind) == (21, ("hidden",), ("hidden",), Kind.TABLE)
    assert table("sinks", "core", 7, to=("scores",)).inputs == ()
    assert table("sinks", "core", 7, to=("scores",)).parameters == 7
    made = join("a", "b", to="c")
    assert (made.inputs, made.outputs, made.kind, made.parameters, made.k, made.n) == (("a", "b"), ("c",), Kind.JOIN, 0, 0, 0)
    work = elementwise("scale", "core", Operations(divisions=2), "scores", rows=CAUSAL)
    assert (work.inputs, work.outputs) == (("scores",), ("scores",))
    assert (work.operations, work.rows, work.kind, work.has_weight) == (Operations(divisions=2), CAUSAL, Kind.ELEMENTWISE, False)


def test_a_context_of_a_window():
    assert (CAUSAL.shape, CAUSAL.sizes, CAUSAL.over) == ("causal", (), Over.SEQUENCES)
    assert Context("window", (4,), "images") != Context("window", (4,))
    with pytest.raises(FrozenInstanceError):
        CAUSAL.sizes = (4,)


def test_passes_of_training():
    assert Pass.TRAINING == Pass.FORWARD | Pass.BACKWARD
    assert Pass.BACKWARD == Pass.DGRAD | Pass.WGRAD
    assert not Pass.TRAINING & (Pass.RECOMPUTE | Pass.PADDING)
    assert len({item.value for item in (Pass.FORWARD, Pass.DGRAD, Pass.WGRAD, Pass.RECOMPUTE, Pass.PADDING)}) == 5


# ---- softmax, executed -----------------------------------------------------------------------------------------------


def attention(lengths, heads, size, sinks, sees):
    """What attention does to scores that are there: operation by operation, head by head, query by query."""
    done = Counter()
    for length in lengths:
        done["square_roots"] += 1  # of the head's width
        for query in range(length):
            for _ in range(heads):
                keys = sum(sees(query, key) for key in range(length))
                done["divisions"] += keys  # by the root
                done["exponentiations"] += keys + sinks
                done["additions"] += keys + sinks - 1  # their sum
                done["divisions"] += keys
                # One channel of the output is a sum of `keys` products, whose core counts one addition a product.
                done["additions"] += size * ((keys - 1) - keys)
    return Operations(**done)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("context", "sees"),
    [
        (CAUSAL, lambda query, key: key <= query),
        (Context("window", (3,)), lambda query, key: query - 3 < key <= query),
        (Context("bidirectional"), lambda query, key: True),
        (Context("chunk", (2,)), lambda query, key: key <= query and key // 2 == query // 2),
    ],
    ids=["causal", "window", "bidirectional", "chunk"],
)
def test_a_softmax_by_execution(context, sees, sinks):
    lengths, heads, size = [1, 2, 7], 3, 5

    def rows(term):
        factor, statistic = (1, term.rows) if isinstance(term.rows, Statistic) else EXACT.statistic(term.rows)
        return factor * statistic.sum(lengths)

    terms = softmax("core", context, heads=heads, value_size=size, sinks=sinks)
    assert {term.kind for term in terms} == {Kind.ELEMENTWISE}
    assert sum((rows(term) * term.operations for term in terms), NOTHING) == attention(lengths, heads, size, sinks, sees)


def test_a_softmax_over_images():
    """The root is taken once an image."""
    terms = softmax("vision", Context("bidirectional", over="images"), heads=2, value_size=4, tokens=PATCHES)
    (root,) = (term for term in terms if term.operations == Operations(square_roots=1))
    assert root.rows == Statistic("count", "images")
    assert root.rows.sum([8, 4, 9]) == 3
