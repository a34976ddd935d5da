"""Exact formulas from values at a few points: each dimension of an operation as a polynomial in the lengths.

All arithmetic is on ``Fraction``.  A solution has to hold at every point, also at those beyond the number of its unknowns.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm, prod
from operator import mul

#: The monomials that a solution may have, for each scale, in the order in which scales are tried.
Bases = Mapping["Scale", Sequence["Monomial"]]
#: Exponents of the four numbers of ``Point.values``.
Monomial = tuple[int, int, int, int]
_NONE: Monomial = (0, 0, 0, 0)


class Scale(enum.Enum):
    """What a polynomial is multiplied by to give the value for a batch."""

    ONCE = "once"
    """One: it holds for the batch as a whole."""
    SEQUENCES = "sequences"
    """The number of sequences."""
    IMAGES = "images"
    """The number of images."""
    NEITHER = "neither"
    """A product of several of these, which is no sum over the batch."""

    def __mul__(self, other: Scale) -> Scale:
        return other if self is Scale.ONCE else self if other is Scale.ONCE else Scale.NEITHER


@dataclass(frozen=True)
class Point:
    """A batch of equal sequences that a model runs with.

    Attributes:
        batch: the number of sequences.
        length: tokens of each sequence.
        encoder: tokens of each encoder input; 0 for models without an encoder.
        images: images in each sequence.
        patches: patches of each image; 0 if the size of images is fixed.
    """

    batch: int
    length: int
    encoder: int = 0
    images: int = 0
    patches: int = 0

    def values(self, chunk: int = 1) -> Monomial:
        """Tokens, encoder tokens and chunks of one sequence, and patches of one image.

        A short last chunk counts too, unless ``chunk`` is negative: then only full chunks of ``-chunk`` tokens count.
        """
        return self.length, self.encoder, -(-self.length // chunk) if chunk > 0 else self.length // -chunk, self.patches

    def times(self, scale: Scale) -> int:
        """The factor of a scale in this batch."""
        return {Scale.ONCE: 1, Scale.SEQUENCES: self.batch, Scale.IMAGES: self.batch * self.images}[scale]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in the lengths of one sequence or one image, multiplied by its scale.

    Attributes:
        coefficients: powers of (tokens, encoder tokens, chunks, patches) -> coefficient, without zeros.
        scale: what the polynomial is multiplied by.
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
        """Its value if that is the same for every batch; else 0."""
        same = self.scale is Scale.ONCE and set(self.coefficients) <= {_NONE}
        return int(self.coefficients.get(_NONE, 0)) if same else 0

    @property
    def factor(self) -> int:
        """The integer coefficient of its only monomial; 1 if it has several, or a fraction."""
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
    """The polynomial that has this value for every batch."""
    return Polynomial({_NONE: Fraction(value)} if value else {})


class Solver:
    """Fits polynomials to values at some points.

    Args:
        points: where the values are taken; a basis that these points do not determine gives no solution.
        bases: see ``Bases``.
        chunk: see ``Polynomial``.
    """

    def __init__(self, points: Sequence[Point], bases: Bases, chunk: int = 1):
        self._bases, self._chunk = bases, chunk
        self._systems = [(scale, basis, _elimination(_rows(points, scale, basis, chunk))) for scale, basis in bases.items()]
        self._known: dict[tuple[int, ...], Polynomial | None] = {}

    def fit(self, values: Sequence[int]) -> Polynomial | None:
        """The polynomial over the first basis that has these values, one per point; None if no basis has one."""
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


#: The inverse of a basis at the points, then rows that a solution maps to zero: a denominator and integers, one per point.
_System = list[tuple[int, list[int]]]


def _rows(points: Sequence[Point], scale: Scale, basis: Sequence[Monomial], chunk: int) -> list[list[Fraction]]:
    return [
        [Fraction(prod(v**i for v, i in zip(point.values(chunk), key, strict=True))) * point.times(scale) for key in basis]
        for point in points
    ]


def _elimination(rows: list[list[Fraction]]) -> _System | None:
    """Gauss-Jordan elimination, done once for all values; None if the columns are linearly dependent."""
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
