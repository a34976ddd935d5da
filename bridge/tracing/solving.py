"""From numbers at a few points to exact formulas: each dimension of an operation as a function of the lengths.

Everything is a ``Fraction``: what is solved is equal at the points that were not used, or it is no solution.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

#: What a number may be made of, for each thing there may be so much of; tried in this order.
Bases = Mapping["Scale", Sequence["Monomial"]]
#: A product of powers of what ``Point.values`` names.
Monomial = tuple[int, int, int, int]
_NONE: Monomial = (0, 0, 0, 0)


class Scale(enum.Enum):
    """Of what there is as much work as a polynomial says."""

    ONCE = "once"
    """Of a batch."""
    SEQUENCES = "sequences"
    IMAGES = "images"
    NEITHER = "neither"
    """A product of several of them: no sum over a batch."""

    def __mul__(self, other: Scale) -> Scale:
        return other if self is Scale.ONCE else self if other is Scale.ONCE else Scale.NEITHER


@dataclass(frozen=True)
class Point:
    """One batch that a model was run with: equal sequences.

    Attributes:
        batch: their number.
        length: tokens of each.
        encoder: tokens of each encoder input; 0 for models without an encoder.
        images: images in each sequence.
        patches: of each image, where its size is free; else 0.
    """

    batch: int
    length: int
    encoder: int = 0
    images: int = 0
    patches: int = 0

    def values(self, chunk: int = 1) -> Monomial:
        """Tokens, encoder tokens and chunks of one sequence, patches of one image.

        The last chunk may be short; of a negative size only full ones count.
        """
        return self.length, self.encoder, -(-self.length // chunk) if chunk > 0 else self.length // -chunk, self.patches

    def times(self, scale: Scale) -> int:
        """How often something is in a batch."""
        return {Scale.ONCE: 1, Scale.SEQUENCES: self.batch, Scale.IMAGES: self.batch * self.images}[scale]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in the lengths of one sequence or one image, times their number or not.

    Attributes:
        coefficients: powers of (tokens, encoder tokens, chunks, patches) -> coefficient, without zeros.
        scale: of what there is so much.
        chunk: tokens of a chunk; negative where only full ones count.
    """

    coefficients: Mapping[Monomial, Fraction] = field(hash=False)
    scale: Scale = Scale.ONCE
    chunk: int = 1

    def __mul__(self, other: Polynomial) -> Polynomial:
        sums: dict[Monomial, Fraction] = {}
        for one, a in self.coefficients.items():
            for two, b in other.coefficients.items():
                key = (one[0] + two[0], one[1] + two[1], one[2] + two[2], one[3] + two[3])
                sums[key] = sums.get(key, Fraction(0)) + a * b
        kept = {key: value for key, value in sums.items() if value}
        return Polynomial(kept, self.scale * other.scale, other.chunk if self.chunk == 1 else self.chunk)

    @property
    def constant(self) -> int:
        """Its value where that is the same whatever the batch; else 0."""
        same = self.scale is Scale.ONCE and set(self.coefficients) <= {_NONE}
        return int(self.coefficients.get(_NONE, 0)) if same else 0

    @property
    def factor(self) -> int:
        """The whole number before its one monomial; 1 where it has several."""
        value = next(iter(self.coefficients.values())) if len(self.coefficients) == 1 else Fraction(1)
        return value.numerator if value.denominator == 1 else 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal polynomials."""
        return (self.scale, *sorted(self.coefficients.items()))

    def at(self, point: Point) -> Fraction:
        """Its value for one batch."""
        values = point.values(self.chunk)
        total = sum(
            (c * prod(v**i for v, i in zip(values, key, strict=True)) for key, c in self.coefficients.items()), Fraction(0)
        )
        return total * point.times(self.scale)


def constant(value: int | Fraction) -> Polynomial:
    """A number, whatever the batch."""
    return Polynomial({_NONE: Fraction(value)} if value else {})


def fit(values: Sequence[int], points: Sequence[Point], bases: Bases, chunk: int = 1) -> Polynomial | None:
    """The one combination of a basis, times the number of what it is a basis of, that has these values; None if there is none.

    The points must decide it: a basis that they do not tell apart gives no solution rather than one of many.
    """
    if len(set(values)) == 1:
        return constant(values[0])
    for scale, basis in bases.items():
        rows = [
            [Fraction(prod(v**i for v, i in zip(point.values(chunk), key, strict=True))) * point.times(scale) for key in basis]
            for point in points
        ]
        solution = _solve(rows, [Fraction(value) for value in values])
        if solution is not None:
            kept = {key: value for key, value in zip(basis, solution, strict=True) if value}
            return Polynomial(kept, scale, chunk)
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
