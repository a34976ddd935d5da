"""The rule of thumb of papers, on the same terms: six FLOPs for each parameter and token, and the whole square of attention.

PaLM (arXiv:2204.02311, appendix B): 6 N + 12 L H Q T a token, which llm-foundry, nanoGPT, torchtitan and OLMo-core follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from bridge.flops.choices import Choice
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Pass, Term

_INPUT = "embedding."


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
    which = Parameters(which)
    again = Pass.RECOMPUTE if shape.recompute_granularity == "full" else Pass.NONE
    for term in terms:
        passes = term.allowed | again | (term.passes & Pass.RECOMPUTE)
        if term.kind is Kind.CORE:
            yield term.changed(passes=passes)
        elif entries := _entries(term, which):
            yield term.changed(k=entries, n=1, times=Fraction(1), kind=Kind.LINEAR, passes=passes)


def _entries(term: Term, which: Parameters) -> int:
    if which is Parameters.ALL:
        return term.active_parameters
    if term.path.startswith(_INPUT):
        return 0
    return term.active_parameters + (term.k * term.n if term.tied.startswith(_INPUT) and term.kind is Kind.LINEAR else 0)
