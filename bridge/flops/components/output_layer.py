"""Embedding and output layer: one is a lookup and costs nothing, the other a matmul over every position."""

from __future__ import annotations

from bridge.flops.elementwise import ACTIVATIONS, ADDITION
from bridge.flops.rows import Part
from bridge.flops.terms import Role, Term, elementwise, norm, table

OUTPUT_LAYER = "output_layer"


def embedding(
    *, vocab_size: int, hidden_size: int, max_position_embeddings: int = 0, num_tokentypes: int = 0, normed: bool = False
) -> list[Term]:
    """The word embedding, and a table of learned positions if there is one; image embeddings enter the stream here.

    Args:
        vocab_size: rows of the table.
        hidden_size: width of the residual stream.
        max_position_embeddings: rows of the position table, 0 for none.
        num_tokentypes: rows of the table of token types (BERT), 0 for none.
        normed: a LayerNorm on the sum (BERT).
    """
    words = table("word_embeddings", "embedding", vocab_size, hidden_size, source="image_embeddings", to=("hidden", "embedded"))
    terms = [words.marked(Role.LOOKED_UP)]
    for name, rows in (("position_embeddings", max_position_embeddings), ("tokentype_embeddings", num_tokentypes)):
        if rows:
            terms.append(table(name, "embedding", rows, hidden_size, source="hidden", to=("hidden",)).marked(Role.LOOKED_UP))
            terms.append(elementwise(name, "embedding", hidden_size * ADDITION, "hidden"))
    if normed:
        terms.append(norm("layernorm", hidden_size, "embedding", source="hidden", to="hidden", bias=True))
    return [term.under("embedding.", Role.EMBEDDING) for term in terms]


def output_layer(*, hidden_size: int, vocab_size: int, tied: str = "", bias: bool = False) -> Term:
    """The projection of every position to the vocabulary.

    Args:
        hidden_size: width of the residual stream.
        vocab_size: columns, padded or not as the convention says.
        tied: module path of the weight where it is another module's: the word embedding, or the main output layer.
        bias: its own bias.
    """
    logits = Term(OUTPUT_LAYER, OUTPUT_LAYER, hidden_size, vocab_size, inputs=("normed",), outputs=("logits",), path=OUTPUT_LAYER)
    return logits.changed(tied=tied, bias=vocab_size * bias, roles=Role.OUTPUT)


def bert_lm_head(*, hidden_size: int) -> list[Term]:
    """BERT's dense layer and norm before the output layer (Devlin et al., arXiv:1810.04805)."""
    terms = [
        Term("dense", OUTPUT_LAYER, hidden_size, hidden_size, inputs=("normed",), outputs=("normed",), bias=hidden_size),
        elementwise("activation", OUTPUT_LAYER, hidden_size * ACTIVATIONS["gelu"], "normed"),
        norm("layer_norm", hidden_size, OUTPUT_LAYER, source="normed", to="normed", bias=True),
    ]
    return [term.under("lm_head.") for term in terms]


PART = Part(name=OUTPUT_LAYER, trains=True, colour={OUTPUT_LAYER: "pink"})
