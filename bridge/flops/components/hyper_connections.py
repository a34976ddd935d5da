"""Manifold-constrained hyper-connections (arXiv:2512.24880): m copies of the residual stream, mixed around every block."""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import Operations
from bridge.flops.rows import Part
from bridge.flops.terms import Kind, Term, elementwise

COMPONENT = "hyper_connections"


def hyper_connections(*, hidden_size: int, multiplicity: int) -> list[Term]:
    """The mixing maps of one layer: from all m copies (m h values) to m^2 + 2 m coefficients, before each of its two blocks."""
    m, twice = multiplicity, Fraction(2)
    maps = Term(
        "hc_fn", COMPONENT, m * hidden_size, m * m + 2 * m, times=twice, kind=Kind.HYPER_CONNECTION, copies=2, active_copies=2
    )
    # Around each block the copies are read as one, mixed with each other, and written to.
    mixing = Operations(additions=(m - 1) + m * (m - 1) + m, multiplications=m + m * m + m)
    # MaxText prices the same sums as products of h columns: m to read, m^2 to mix, and half of m to write (no additions).
    sums = Term("stream_mixing", COMPONENT, m + m * m, hidden_size, times=twice, kind=Kind.STREAM_MIXING, weight=False)
    writes = Term("stream_write", COMPONENT, m, hidden_size, kind=Kind.STREAM_MIXING, weight=False)
    around = elementwise("mixing", COMPONENT, 2 * hidden_size * mixing, "hidden")
    return [maps, sums, writes, around]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    return hyper_connections(hidden_size=build.hidden_size, multiplicity=build.shape.hc_mult or 0)


PART = Part(name=COMPONENT, option="hc_mult", terms=_terms)
