"""Work that is not a matmul, operation by operation: what norms, activations, softmax and positions do to a vector or a pair.

Counts are of the textbook form of each function.  A subtraction counts as an addition; negations and comparisons are free.  A
logarithm counts as an exponentiation, and so does the exponential inside a hyperbolic tangent or an error function.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from operator import add, attrgetter

Count = int | Fraction


@dataclass(frozen=True, slots=True)
class Operations:
    """How many of each operation."""

    additions: Count = 0
    multiplications: Count = 0
    divisions: Count = 0
    exponentiations: Count = 0
    square_roots: Count = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(*map(add, _COUNTS(self), _COUNTS(other)))

    def __mul__(self, factor: Count) -> Operations:
        return Operations(*(factor * count for count in _COUNTS(self)))

    __rmul__ = __mul__


_COUNTS = attrgetter(*Operations.__slots__)
NOTHING = Operations()

# ---- of one number -------------------------------------------------------------------------------

ADDITION = Operations(additions=1)
MULTIPLICATION = Operations(multiplications=1)
#: 1 / (1 + exp(-x))
SIGMOID = Operations(additions=1, divisions=1, exponentiations=1)
#: x / (1 + exp(-x))
SILU = SIGMOID
#: log(1 + exp(x))
SOFTPLUS = Operations(additions=1, exponentiations=2)
#: x cos + y sin
ROPE = Operations(additions=1, multiplications=2)

#: By megatron-core's and torch's names.
ACTIVATIONS = {
    "silu": SILU,
    "swish": SILU,
    # x / 2 (1 + erf(x / sqrt 2))
    "gelu": Operations(additions=1, multiplications=3, exponentiations=1),
    # x / 2 (1 + tanh(c (x + 0.044715 x^3))), tanh(y) = 1 - 2 / (exp(2 y) + 1)
    "gelu_tanh": Operations(additions=4, multiplications=7, divisions=1, exponentiations=1),
    # x / (1 + exp(-1.702 x))
    "quick_gelu": SILU + MULTIPLICATION,
    "relu": NOTHING,
    "squared_relu": MULTIPLICATION,
}


# ---- of a vector ---------------------------------------------------------------------------------


def rms_norm(size: int) -> Operations:
    """x / sqrt(mean of x^2) times a weight (Zhang & Sennrich, arXiv:1910.07467)."""
    return Operations(additions=size - 1, multiplications=2 * size, divisions=size + 1, square_roots=1)


def layer_norm(size: int) -> Operations:
    """Mean, variance, a weight and a bias (Ba et al., arXiv:1607.06450)."""
    return Operations(additions=4 * size - 2, multiplications=2 * size, divisions=size + 2, square_roots=1)


def l2_norm(size: int) -> Operations:
    """x / sqrt(sum of x^2)."""
    return Operations(additions=size - 1, multiplications=size, divisions=size, square_roots=1)


def softmax_row(size: int) -> Operations:
    """exp(x) over the sum of them."""
    return Operations(additions=size - 1, divisions=size, exponentiations=size)


def dot(size: int, products: int = 1) -> Operations:
    """``products`` sums of ``size`` products."""
    return Operations(additions=(size - 1) * products, multiplications=size * products)
