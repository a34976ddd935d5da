"""Embedding and output layer: one is a look-up and costs nothing, the other a matmul over every position."""

from __future__ import annotations

from bridge.flops.terms import Kind, Term

OUTPUT_LAYER = "output_layer"


def embedding(*, vocab_size: int, hidden_size: int, max_position_embeddings: int = 0) -> list[Term]:
    """The word embedding, and a table of learned positions if there is one; image embeddings enter the stream here.

    Args:
        vocab_size: rows of the table.
        hidden_size: width of the residual stream.
        max_position_embeddings: rows of the position table, 0 for none.
    """
    terms = [
        Term("word_embeddings", "embedding", vocab_size, hidden_size, inputs=("image_embeddings",),
             outputs=("hidden", "embedded"), kind=Kind.TABLE)
    ]  # fmt: skip
    if max_position_embeddings:
        terms.append(Term("position_embeddings", "embedding", max_position_embeddings, hidden_size, inputs=(), kind=Kind.TABLE))
    return [term.under("embedding.") for term in terms]


def output_layer(*, hidden_size: int, vocab_size: int, tied: str = "") -> Term:
    """The projection of every position to the vocabulary.

    Args:
        hidden_size: width of the residual stream.
        vocab_size: columns, padded or not as the convention says.
        tied: module path of the weight where it is another module's: the word embedding, or the main output layer.
    """
    return Term(
        OUTPUT_LAYER, OUTPUT_LAYER, hidden_size, vocab_size, inputs=("normed",), outputs=("logits",), tied=tied, path=OUTPUT_LAYER
    )
