"""Both ends of a language model: tables that cost nothing, BERT's head, a weight that is counted once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridge.flops import compile_plan
from bridge.flops.components.output_layer import bert_lm_head, embedding, output_layer
from bridge.flops.terms import Role
from tests.flops.components.blocks import SMALL, executed, priced


def test_bert():
    pytest.importorskip("transformers")
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings, BertLMPredictionHead

    config = BertConfig(vocab_size=50, hidden_size=12, max_position_embeddings=30, type_vocab_size=3, num_attention_heads=4)
    tables = embedding(vocab_size=50, hidden_size=12, max_position_embeddings=30, num_tokentypes=3, normed=True)
    module, tokens = BertEmbeddings(config), torch.zeros(2, 7, dtype=torch.long)
    assert priced(tables, sequence_lengths=[7, 7]) == executed(module, lambda: module(tokens))
    head = BertLMPredictionHead(config)
    head.bias = head.decoder.bias
    last = [*bert_lm_head(hidden_size=12), output_layer(hidden_size=12, vocab_size=50, bias=True)]
    assert priced(last, sequence_lengths=[7, 7]) == executed(head, lambda: head(torch.zeros(14, 12)))


@pytest.mark.parametrize(("positions", "types", "tables"), [(0, 0, 1), (30, 0, 2), (0, 3, 2), (30, 3, 3)])
def test_tables_that_are_there(positions, types, tables):
    found = embedding(vocab_size=50, hidden_size=12, max_position_embeddings=positions, num_tokentypes=types)
    kept = [term for term in found if term.has_weight]
    assert (len(kept), sum(term.parameters for term in kept)) == (tables, 12 * (50 + positions + types))
    assert all(Role.LOOKED_UP | Role.EMBEDDING in term.roles for term in kept)
    # Each table but the first is one more addition to every number.
    assert sum(term.operations.additions for term in found) == 12 * (tables - 1)


@pytest.mark.parametrize("bias", [False, True])
def test_the_projection_to_the_vocabulary(bias):
    module = nn.Linear(12, 50, bias=bias)
    term = output_layer(hidden_size=12, vocab_size=50, **{"bias": True} if bias else {})
    assert priced([term], sequence_lengths=[7]) == executed(module, lambda: module(torch.zeros(7, 12)))
    assert (term.path, term.roles) == ("output_layer", Role.OUTPUT)


def test_a_tied_weight_runs_and_is_counted_at_its_own_module():
    own, tied = (output_layer(hidden_size=12, vocab_size=50, tied=path, bias=True) for path in ("", "embedding.word_embeddings"))
    assert priced([tied], sequence_lengths=[7])[:2] == priced([own], sequence_lengths=[7])[:2]
    assert (own.parameters, tied.parameters) == (12 * 50 + 50, 50)


def test_a_tied_weight_trains_where_the_embedding_does():
    """With one of the ends in training: the logits' weight gradient, and nothing below it."""
    tied = compile_plan(
        SMALL | {"share_embeddings_and_output_weights": True}, "exact", framework="transformers",
        trainable=lambda path: path == "output_layer",
    )  # fmt: skip
    assert tied.flops([7]) == tied.flops([7], passes="forward")
    assert tied.parameters()["trainable"] == 0
    apart = compile_plan(SMALL, "exact", framework="transformers", trainable=lambda path: path == "output_layer")
    assert apart.flops([7]) - apart.flops([7], passes="forward") == 2 * 7 * 12 * 50
    assert apart.parameters()["trainable"] == 12 * 50


def test_all_conventions_agree_on_the_logits_but_for_padding():
    logits = {name: compile_plan(SMALL, name).breakdown([7], passes="forward")["output_layer"]
              for name in ("megatron", "maxtext", "exact", "executed")}  # fmt: skip
    narrow, padded = 2 * 7 * 12 * 50, 2 * 7 * 12 * 128
    assert logits == {"megatron": padded, "maxtext": narrow, "exact": narrow, "executed": padded}
