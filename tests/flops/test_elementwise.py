"""Each function in its textbook form, on numbers that count what is done to them, beside torch's own."""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import astuple
from fractions import Fraction
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bridge.flops import elementwise
from bridge.flops.elementwise import ACTIVATIONS, NOTHING, Operations

BOOK: Counter[str] = Counter()


class Number(float):
    """A number that counts: a subtraction is an addition; negations, comparisons and constants are free."""

    def _done(self, what, value):
        BOOK[what] += 1
        return Number(value)

    def __add__(self, other):
        return self._done("additions", float(self) + float(other))

    def __sub__(self, other):
        return self._done("additions", float(self) - float(other))

    def __mul__(self, other):
        return self._done("multiplications", float(self) * float(other))

    def __truediv__(self, other):
        return self._done("divisions", float(self) / float(other))

    def __rtruediv__(self, other):
        return self._done("divisions", float(other) / float(self))

    def __rsub__(self, other):
        return self._done("additions", float(other) - float(self))

    def __neg__(self):
        return Number(-float(self))

    __radd__, __rmul__ = __add__, __mul__

    def exp(self):
        return self._done("exponentiations", math.exp(self))

    def log(self):
        return self._done("exponentiations", math.log(self))

    def erf(self):
        return self._done("exponentiations", math.erf(self))

    def sqrt(self):
        return self._done("square_roots", math.sqrt(self))


def total(numbers):
    return reduce(operator.add, numbers)


def dot(a, b):
    return total([x * y for x, y in zip(a, b, strict=True)])


def tanh(y):
    return 1 - 2 / ((2 * y).exp() + 1)


#: A function of one number: ours, as it is in textbooks, and torch's.
OF_ONE = {
    "silu": (lambda x: x / (1 + (-x).exp()), functional.silu),
    "swish": (lambda x: x / (1 + (-x).exp()), functional.silu),
    "gelu": (lambda x: 0.5 * x * (1 + (x * math.sqrt(0.5)).erf()), functional.gelu),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))),
        lambda x: functional.gelu(x, approximate="tanh"),
    ),
    "quick_gelu": (lambda x: x / (1 + (-(1.702 * x)).exp()), lambda x: x * torch.sigmoid(1.702 * x)),
    "relu": (lambda x: x if x > 0 else Number(0), functional.relu),
    "squared_relu": (lambda x: x * x if x > 0 else Number(0) * Number(0), lambda x: functional.relu(x) ** 2),
}  # fmt: skip
OTHERS = {
    "SIGMOID": (lambda x: 1 / (1 + (-x).exp()), torch.sigmoid),
    "SOFTPLUS": (lambda x: (1 + x.exp()).log(), functional.softplus),
}


def run(function, *values):
    BOOK.clear()
    return function(*values), Operations(**BOOK)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [-2.25, 0.75])
def test_activations(name, x):
    ours, theirs = OF_ONE[name]
    value, done = run(ours, Number(x))
    assert value == pytest.approx(float(theirs(torch.tensor(x, dtype=torch.float64))), abs=1e-12)
    assert done == ACTIVATIONS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_of_one_number(name):
    ours, theirs = OTHERS[name]
    value, done = run(ours, Number(0.75))
    assert value == pytest.approx(float(theirs(torch.tensor(0.75, dtype=torch.float64))), abs=1e-12)
    assert done == getattr(elementwise, name)


def test_a_turned_channel():
    value, done = run(lambda x, y: x * 0.6 + y * 0.8, Number(2), Number(1))
    assert (value, done) == (pytest.approx(2.0), elementwise.ROPE)
    assert run(operator.add, Number(1), Number(2))[1] == elementwise.ADDITION
    assert run(operator.mul, Number(1), Number(2))[1] == elementwise.MULTIPLICATION


# ---- of a vector -----------------------------------------------------------------------------------------------------


def rms_norm(x, weight, bias):
    root = (dot(x, x) / len(x)).sqrt()
    return [y / root * w for y, w in zip(x, weight, strict=True)]


def layer_norm(x, weight, bias):
    mean = total(x) / len(x)
    centred = [y - mean for y in x]
    root = (dot(centred, centred) / len(x)).sqrt()
    return [y / root * w + b for y, w, b in zip(centred, weight, bias, strict=True)]


def l2_norm(x, weight, bias):
    root = dot(x, x).sqrt()
    return [y / root for y in x]


def softmax_row(x, weight, bias):
    powers = [y.exp() for y in x]
    whole = total(powers)
    return [power / whole for power in powers]


OF_VECTORS = {
    rms_norm: lambda x, w, b: functional.rms_norm(x, x.shape, w, eps=0.0),
    layer_norm: lambda x, w, b: functional.layer_norm(x, x.shape, w, b, eps=0.0),
    l2_norm: lambda x, w, b: functional.normalize(x, dim=0),
    softmax_row: lambda x, w, b: x.softmax(0),
}


#: LayerNorm of one number is 0 / 0.
CASES = [(function, size) for function in OF_VECTORS for size in (1, 2, 7) if (function, size) != (layer_norm, 1)]


@pytest.mark.parametrize(("function", "size"), CASES, ids=lambda it: getattr(it, "__name__", it))
def test_functions_of_a_vector(function, size):
    vectors = torch.rand(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    value, done = run(function, *([Number(x) for x in vector] for vector in vectors.tolist()))
    assert done == getattr(elementwise, function.__name__)(size)
    assert value == pytest.approx(OF_VECTORS[function](*vectors).tolist(), abs=1e-12)


@pytest.mark.parametrize(("size", "products"), [(1, 1), (5, 1), (5, 3), (4, 0)])
def test_dot(size, products):
    x = [Number(1)] * size
    _, done = run(lambda: [dot(x, x) for _ in range(products)])
    assert done == elementwise.dot(size, products)
    assert elementwise.dot(size) == elementwise.dot(size, 1)


# ---- sums and multiples ----------------------------------------------------------------------------------------------

OPERATIONS = st.builds(Operations, *[st.integers(0, 10**20)] * 5)


@given(OPERATIONS, OPERATIONS, st.integers(0, 9))
def test_sums_and_multiples_go_operation_by_operation(one, other, times):
    assert astuple(one + other) == tuple(a + b for a, b in zip(astuple(one), astuple(other), strict=True))
    assert one + NOTHING == one
    assert times * one == one * times == sum([one] * times, NOTHING)


def test_a_fraction_of_an_operation_stays_exact():
    assert Fraction(1, 3) * Operations(1, 2, 3, 4, 5) * 3 == Operations(1, 2, 3, 4, 5)
    assert astuple(NOTHING) == (0, 0, 0, 0, 0)
