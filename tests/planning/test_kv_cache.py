"""What a cache holds, and what a token reads and writes: against masks, and against the sum of what was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.flops.components import cross_attention
from bridge.flops.reading import read
from bridge.flops.rows import Cache
from bridge.flops.terms import CAUSAL, Context
from bridge.planning.kv_cache import entries_after, entries_read, entries_written, layer_caches, seen


def test_keys_seen():
    assert [seen(CAUSAL, n) for n in (1, 2, 9)] == [1, 2, 9]
    assert [seen(Context("window", (4,)), n) for n in (1, 4, 5, 90)] == [1, 4, 4, 4]
    assert [seen(Context("chunk", (4,)), n) for n in (1, 4, 5, 8, 9)] == [1, 4, 1, 4, 1]
    assert [seen(Context("compressed", (4,)), n) for n in (3, 4, 8, 9)] == [0, 1, 2, 2]


#: Context -> whether the query at t sees the key at j, both from 1; of compressed keys j is the last token of a block.
MASKS: dict[Context, Callable[[int, int], bool]] = {
    CAUSAL: lambda t, j: True,
    Context("window", (5,)): lambda t, j: j > t - 5,
    Context("window", (1,)): lambda t, j: j == t,
    Context("prefix_window", (3,)): lambda t, j: j > t - 3,
    Context("chunk", (4,)): lambda t, j: (j - 1) // 4 == (t - 1) // 4,
    Context("compressed", (3,)): lambda t, j: j % 3 == 0,
    Context("indexer", (2,)): lambda t, j: True,
}
#: The same of a choice of the best: how many there are, and how many may be chosen.
CHOICES = {Context("topk", (4,)): (1, 4), Context("compressed_topk", (3, 2)): (3, 2)}


@given(st.integers(1, 60))
def test_a_query_sees_the_keys_that_its_mask_leaves(position):
    for context, mask in MASKS.items():
        assert seen(context, position) == sum(mask(position, key) for key in range(1, position + 1)), context
    for context, (ratio, most) in CHOICES.items():
        assert seen(context, position) == min(position // ratio, most), context


@pytest.mark.parametrize("context", [*MASKS, *CHOICES], ids=str)
def test_before_the_first_token_there_is_nothing(context):
    assert seen(context, 0) == 0


@given(st.integers(1, 60), st.integers(1, 9))
def test_what_is_kept_is_what_was_written(tokens, entries):
    for kept in (CAUSAL, Context("compressed", (4,))):
        cache = Cache("keys", entries, kept)
        written = [entries_written(cache, position) for position in range(1, tokens + 1)]
        assert sum(written) == entries_after(cache, tokens)
        assert set(written) <= {0, entries}


def test_a_window_forgets_as_many_as_it_takes_in():
    cache = Cache("keys", 10, Context("window", (4,)))
    assert [entries_after(cache, tokens) for tokens in (0, 1, 4, 5, 90)] == [0, 10, 40, 40, 40]
    assert [entries_written(cache, position) for position in (1, 4, 5, 90)] == [10] * 4
    assert [entries_read(cache, position) for position in (1, 4, 5)] == [10, 40, 40]


def test_a_state_is_one_whatever_the_length():
    state = Cache("state", 7, is_state=True)
    assert [entries_after(state, tokens) for tokens in (0, 1, 100)] == [0, 7, 7]
    assert (entries_read(state, 100), entries_written(state, 100)) == (7, 7)


def test_what_another_layer_keeps_is_read_and_neither_held_nor_written():
    shared = Cache("keys", 6, CAUSAL, owned=False)
    assert (entries_after(shared, 9), entries_read(shared, 9), entries_written(shared, 9)) == (0, 54, 0)


def test_a_choice_is_read_and_all_is_kept():
    chosen = Cache("keys", 3, CAUSAL, Context("topk", (4,)))
    assert (entries_after(chosen, 9), entries_read(chosen, 9), entries_read(chosen, 2)) == (27, 12, 6)


def test_an_encoders_states_are_as_long_as_its_input_and_written_once():
    states = Cache("keys", 5, cross_attention.ENCODER)
    assert (entries_after(states, 1, 20), entries_after(states, 9, 20), entries_after(states, 0, 20)) == (100, 100, 0)
    assert (entries_read(states, 3, 20), entries_written(states, 1)) == (100, 0)


MODEL = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2,
         "vocab_size": 50, "gated_linear_unit": True}  # fmt: skip


def caches(**fields):
    return layer_caches(read(MODEL | fields).language)


def test_the_caches_of_layers():
    full, window = Cache("keys_and_values", 2 * 2 * 8, CAUSAL), Cache("keys_and_values", 2 * 2 * 8, Context("window", (6,)))
    assert caches() == [[full]] * 4
    assert caches(window_size=(5, 0), window_attn_skip_freq=2) == [[window], [full]] * 2
    crossed = caches(encoder_num_layers=1)
    assert [len(layer) for layer in crossed] == [2] * 4
    assert crossed[0][1].kept == cross_attention.ENCODER
    assert [
        layer == [] for layer in caches(hybrid_layer_pattern="M-*-", mamba_state_dim=8, mamba_head_dim=8, mamba_num_groups=2)
    ] == [False, True, False, True]  # an MLP keeps nothing
    shared = caches(num_kv_shared_layers=1)
    assert [layer[0].owned for layer in shared] == [True, True, True, False]
