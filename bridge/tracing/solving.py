"""From numbers at a few points to exact formulas: each dimension of an operation as a function of the lengths.

Everything is a ``Fraction``: what is solved is equal at the points that were not used, or it is no solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

#: A product of powers of what ``Point.values`` names.
Monomial = tuple[int, int, int]
_NONE: Monomial = (0, 0, 0)


@dataclass(frozen=True)
class Point:
    """One batch that a model was run with: equal sequences.

    Attributes:
        batch: their number.
        length: tokens of each.
        encoder: tokens of each encoder input; 0 for models without an encoder.
    """

    batch: int
    length: int
    encoder: int = 0

    def values(self, chunk: int = 1) -> tuple[int, int, int]:
        """Tokens, encoder tokens and chunks of one sequence; the last chunk may be short."""
        return self.length, self.encoder, -(-self.length // chunk)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in the lengths of one sequence, times the number of sequences or not.

    Attributes:
        coefficients: powers of (tokens, encoder tokens, chunks) -> coefficient, without zeros.
        batch: the power of the number of sequences.
        chunk: tokens of a chunk.
    """

    coefficients: Mapping[Monomial, Fraction] = field(hash=False)
    batch: int = 0
    chunk: int = 1

    def __mul__(self, other: Polynomial) -> Polynomial:
        sums: dict[Monomial, Fraction] = {}
        for one, a in self.coefficients.items():
            for two, b in other.coefficients.items():
                key = (one[0] + two[0], one[1] + two[1], one[2] + two[2])
                sums[key] = sums.get(key, Fraction(0)) + a * b
        kept = {key: value for key, value in sums.items() if value}
        return Polynomial(kept, self.batch + other.batch, max(self.chunk, other.chunk))

    @property
    def constant(self) -> int:
        """Its value where that is the same whatever the batch; else 0."""
        return int(self.coefficients.get(_NONE, 0)) if not self.batch and set(self.coefficients) <= {_NONE} else 0

    @property
    def factor(self) -> int:
        """The whole number before its one monomial; 1 where it has several."""
        value = next(iter(self.coefficients.values())) if len(self.coefficients) == 1 else Fraction(1)
        return value.numerator if value.denominator == 1 else 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal polynomials."""
        return (self.batch, *sorted(self.coefficients.items()))

    def at(self, point: Point) -> Fraction:
        """Its value for one batch."""
        values = point.values(self.chunk)
        total = sum(
            (c * prod(v**i for v, i in zip(values, key, strict=True)) for key, c in self.coefficients.items()), Fraction(0)
        )
        return total * point.batch**self.batch


def constant(value: int | Fraction) -> Polynomial:
    """A number, whatever the batch."""
    return Polynomial({_NONE: Fraction(value)} if value else {})


def fit(values: Sequence[int], points: Sequence[Point], basis: Sequence[Monomial], chunk: int = 1) -> Polynomial | None:
    """The one combination of ``basis``, times the number of sequences or not, that has these values; None if there is none.

    The points must decide it: a basis that they do not tell apart gives no solution rather than one of many.
    """
    if len(set(values)) == 1:
        return constant(values[0])
    for power in (1, 0):
        rows = [
            [Fraction(prod(v**i for v, i in zip(point.values(chunk), key, strict=True))) * point.batch**power for key in basis]
            for point in points
        ]
        solution = _solve(rows, [Fraction(value) for value in values])
        if solution is not None:
            kept = {key: value for key, value in zip(basis, solution, strict=True) if value}
            return Polynomial(kept, power, chunk)
    return None


def _solve(rows: list[list[Fraction]], values: list[Fraction]) -> list[Fraction] | None:
    """The solution of an overdetermined system of equations, where there is exactly one."""
    system = [[*row, value] for row, value in zip(rows, values, strict=True)]
    width, rank = len(rows[0]), 0
    for column in range(width):
        pivot = next((i for i in range(rank, len(system)) if system[i][column]), None)
        if pivot is None:
            return None
        system[rank], system[pivot] = system[pivot], system[rank]
        head = system[rank][column]
        system[rank] = [entry / head for entry in system[rank]]
        for i, row in enumerate(system):
            if i != rank and row[column]:
                factor = row[column]
                system[i] = [entry - factor * other for entry, other in zip(row, system[rank], strict=True)]
        rank += 1
    if any(row[width] for row in system[rank:]):
        return None
    return [system[i][width] for i in range(width)]
