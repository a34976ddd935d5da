"""From numbers at a few points to exact formulas: each dimension of an operation as a function of the lengths.

Everything is a ``Fraction``: what is solved is equal at the points that were not used, or it is not a solution.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm, prod
from operator import mul

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


class Solver:
    """Numbers at some points as functions of the lengths there.

    Args:
        points: must decide it: a basis that they do not tell apart gives no solution rather than one of many.
        bases: see ``Bases``.
        chunk: see ``Polynomial``.
    """

    def __init__(self, points: Sequence[Point], bases: Bases, chunk: int = 1):
        self._bases, self._chunk = bases, chunk
        self._systems = [(scale, basis, _elimination(_rows(points, scale, basis, chunk))) for scale, basis in bases.items()]
        self._known: dict[tuple[int, ...], Polynomial | None] = {}

    def fit(self, values: Sequence[int]) -> Polynomial | None:
        """The one combination of a basis, times the number of what it is a basis of, that has these values; None if none has."""
        key = tuple(values)
        if key not in self._known:
            self._known[key] = constant(key[0]) if len(set(key)) == 1 else self._solve(key)
        return self._known[key]

    def _solve(self, values: tuple[int, ...]) -> Polynomial | None:
        for scale, basis, system in self._systems:
            solution = system and _solution(system, len(basis), values)
            if solution:
                kept = {key: value for key, value in zip(basis, solution, strict=True) if value}
                return Polynomial(kept, scale, self._chunk)
        return None


#: What turns values at points into a solution and then zeros: of each row a denominator, and a whole number for each point.
_System = list[tuple[int, list[int]]]


def _rows(points: Sequence[Point], scale: Scale, basis: Sequence[Monomial], chunk: int) -> list[list[Fraction]]:
    return [
        [Fraction(prod(v**i for v, i in zip(point.values(chunk), key, strict=True))) * point.times(scale) for key in basis]
        for point in points
    ]


def _elimination(rows: list[list[Fraction]]) -> _System | None:
    """Gauss's, done once for all values; None where the rows do not tell the columns apart."""
    width = len(rows[0])
    system = [[*row, *(Fraction(i == j) for j in range(len(rows)))] for i, row in enumerate(rows)]
    for column in range(width):
        pivot = next((i for i in range(column, len(system)) if system[i][column]), None)
        if pivot is None:
            return None
        system[column], system[pivot] = system[pivot], system[column]
        head = system[column][column]
        system[column] = [entry / head for entry in system[column]]
        for i, row in enumerate(system):
            if i != column and row[column]:
                factor = row[column]
                system[i] = [entry - factor * other for entry, other in zip(row, system[column], strict=True)]
    return [_whole(row[width:]) for row in system]


def _whole(row: list[Fraction]) -> tuple[int, list[int]]:
    denominator = lcm(*(entry.denominator for entry in row))
    return denominator, [int(entry * denominator) for entry in row]


def _solution(system: _System, width: int, values: tuple[int, ...]) -> list[Fraction] | None:
    if any(sum(map(mul, row, values)) for _, row in system[width:]):
        return None
    return [Fraction(sum(map(mul, row, values)), denominator) for denominator, row in system[:width]]
