"""The rule of thumb of papers, on the same terms: six FLOPs for each parameter and token, and the whole square of attention.

PaLM (arXiv:2204.02311, appendix B): 6 N + 12 L H Q T per token, which llm-foundry, nanoGPT, torchtitan and OLMo-core follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from bridge.flops.choices import Choice
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Pass, Role, Term


class Parameters(Choice):
    """Which parameters the rule takes for its N; of experts always those that a token uses."""

    ALL = "all"
    """All of them: the embedding, tables of positions, norms and biases too (llm-foundry)."""
    WITHOUT_EMBEDDING = "without_embedding"
    """Without what the input embedding alone holds (torchtitan, nanoGPT); a matrix tied to the output layer stays."""


def by_parameters(terms: Iterable[Term], which: Parameters, shape: ModelShape) -> Iterator[Term]:
    """The terms as the rule has them: a weight costs its entries in each pass, frozen or not; attention is the one product left.

    Recomputation of whole layers is taken to run everything again (8 N + 16 L H Q T).
    """
    again = Pass.RECOMPUTE if shape.recompute_granularity == "full" else Pass.NONE
    without = Parameters(which) is Parameters.WITHOUT_EMBEDDING
    shared = without and shape.share_embeddings_and_output_weights
    for term in terms:
        passes = term.allowed | again | (term.passes & Pass.RECOMPUTE)
        if term.kind is Kind.CORE:
            yield term.changed(passes=passes)
            continue
        entries = term.active_parameters
        if without and Role.EMBEDDING in term.roles:
            entries = 0
        elif shared and Role.OUTPUT in term.roles:  # once, however many depths read it
            entries, shared = entries + term.k * term.n, False
        if entries:
            yield term.changed(k=entries, n=1, times=Fraction(1), kind=Kind.LINEAR, passes=passes)
