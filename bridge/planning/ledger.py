"""The operation ledger: additions, multiplications, divisions, exponentiations and square roots, and what they cost.

Every matmul and every declaration of element-wise work of a model, counted operation by operation: ``Ledger`` takes any
configuration.

A matmul (m, k) x (k, n) is m k n multiplications and m (k - 1) n additions; a bias is m n additions.  Costs are weighted: an
exponentiation and a square root count ten, everything else one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from operator import add, sub
from typing import Any

from bridge.flops import conventions, reading
from bridge.flops.elementwise import ACTIVATIONS, NOTHING, Operations, dot, layer_norm, rms_norm
from bridge.flops.lengths import batch_lengths
from bridge.flops.plan import PASSES, Passes, Plan, compile_plan
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind, Pass, Term
from bridge.flops.transforms import ADAPTERS
from bridge.planning.inference import step_pairs

#: What one operation costs.
COSTS = Operations(additions=1, multiplications=1, divisions=1, exponentiations=10, square_roots=10)
OPERATIONS = tuple(field.name for field in fields(Operations))


@dataclass(frozen=True)
class OperationCost:
    """Costs by operation (not counts), and the part of their sum that LoRA adds."""

    additions: int = 0
    multiplications: int = 0
    divisions: int = 0
    exponentiations: int = 0
    square_roots: int = 0
    lora: int = 0

    @property
    def total(self) -> int:
        """The sum over all operations; ``lora`` is part of it."""
        return self.additions + self.multiplications + self.divisions + self.exponentiations + self.square_roots

    def __add__(self, other: OperationCost) -> OperationCost:
        return OperationCost(*map(add, _values(self), _values(other)))

    def __sub__(self, other: OperationCost) -> OperationCost:
        return OperationCost(*map(sub, _values(self), _values(other)))

    def __mul__(self, factor: int) -> OperationCost:
        return OperationCost(*(value * factor for value in _values(self)))

    __rmul__ = __mul__


def _values(cost: OperationCost) -> tuple[int, ...]:
    return tuple(getattr(cost, field.name) for field in fields(OperationCost))


# ---- any model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Equal work of one batch: a line of the ledger.

    Attributes:
        component, name: what it belongs to.
        layers: how many terms of the model do it.
        cost: the cost of all of them.
    """

    component: str
    name: str
    layers: int
    cost: OperationCost


@dataclass(frozen=True)
class _Priced:
    """One term: its operations per unit of a statistic."""

    term: Term
    statistic: Statistic
    operations: Operations


class Ledger:
    """What every operation of a model costs.

    The backward pass costs what autograd runs of it: for a matmul one more for each operand that needs a gradient, for
    element-wise work two more where a gradient passes through it.

    Attributes:
        not_counted: parts of the model that are not priced.
    """

    def __init__(
        self,
        cfg: Any,
        convention: str = "executed",
        *,
        framework: str | None = None,
        edit: Callable[[list[Term]], list[Term]] = list,
    ):
        """Compile a configuration.

        Args:
            cfg: as for ``compile_plan``.
            convention: ``executed`` for attention as a dense kernel runs it, the whole square, or ``exact`` for the pairs
                that are seen.
            framework: as for ``compile_plan``.
            edit: changes the terms, for architectures that no configuration describes.
        """
        model, chosen = reading.read(cfg), conventions.get(convention)

        def compiled(record: conventions.Convention) -> Plan:
            return compile_plan(model, record, framework=framework, elementwise=True)

        # The vocabulary as given; a convolution costs what it costs.
        record = replace(chosen, padded_vocabulary=False, mamba_convolution=True)
        plan = compiled(record)
        self._priced = _price(edit(list(plan.terms)), record)
        # A statistic of a step grows by what one more token costs: see ``inference``.
        growing = replace(record, pairs=step_pairs(chosen))
        self._step_terms = lambda: _price(edit(list(compiled(growing).terms)), growing)
        named = {"activation_func": model.shape.activation}
        if model.vision is not None:
            named["vision_config.hidden_act"] = model.vision.activation
        unknown = {field: name for field, name in named.items() if name not in ACTIVATIONS}
        notes = (f"{field}={name!r}: the cost of this activation is unknown and not counted" for field, name in unknown.items())
        self.not_counted = (*plan.not_counted, *notes)

    def entries(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "forward",
        *,
        keep: Callable[[Term], bool] = lambda term: True,
        **inputs: Iterable[int],
    ) -> list[Entry]:
        """The lines of a batch, in the order of the forward pass; equal work of several layers in one.

        Args:
            sequence_lengths, image_patches, inputs: as for ``Plan.measure``.
            passes: ``forward``, ``training`` or ``hardware``.
            keep: which terms to list.
        """
        lengths = batch_lengths(sequence_lengths, image_patches, **inputs)
        amounts = {one.statistic: one.statistic.sum(lengths[one.statistic.over]) for one in self._priced}
        return _entries(self._priced, amounts, PASSES[Passes(passes)], keep)

    def cost(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "forward",
        *,
        keep: Callable[[Term], bool] = lambda term: True,
        **inputs: Iterable[int],
    ) -> OperationCost:
        """The sum of ``entries``."""
        return _sum(self.entries(sequence_lengths, image_patches, passes, keep=keep, **inputs))

    @cached_property
    def _steps(self) -> list[_Priced]:
        return self._step_terms()

    def decode(self, cached: int, new: int = 1) -> OperationCost:
        """The cost of ``new`` tokens, one after the other, behind ``cached`` ones in a KV cache."""

        def growth(statistic: Statistic) -> int:
            if statistic.over != "sequences":
                return 0
            # What a pass does once, it does in every step.
            return new if statistic.kind == "count" else statistic.of(cached + new) - statistic.of(cached)

        return _sum(_entries(self._steps, {one.statistic: growth(one.statistic) for one in self._steps}, PASSES[Passes.FORWARD]))


def _price(terms: Iterable[Term], record: conventions.Convention) -> list[_Priced]:
    priced = []
    for term in terms:
        operations = COUNTED[term.kind](term)
        if operations != NOTHING:
            rows = term.rows
            if isinstance(rows, Context):
                factor, rows = record.statistic(rows)
                operations = _plain(factor) * operations
            priced.append(_Priced(term, rows, operations))
        if term.bias and term.kind in BIASED:
            # Biases are added once a row, whatever the pairs.
            assert isinstance(term.rows, Statistic)
            priced.append(_Priced(term, term.rows, _plain(term.times) * Operations(additions=term.bias)))
    return priced


def _entries(
    priced: Sequence[_Priced],
    amounts: Mapping[Statistic, int],
    flags: tuple[Pass, ...],
    keep: Callable[[Term], bool] = lambda term: True,
) -> list[Entry]:
    counts: dict[tuple[str, str], Operations] = {}
    paths: dict[tuple[str, str], set[str]] = {}
    for one in priced:
        if keep(one.term):
            key = (one.term.component, one.term.name)
            runs = sum(flag in one.term.passes for flag in flags)
            counts[key] = counts.get(key, NOTHING) + runs * amounts[one.statistic] * one.operations
            paths.setdefault(key, set()).add(one.term.path.rpartition(".")[0])
    return [
        Entry(component, name, len(paths[component, name]), cost_of(operations, component == ADAPTERS))
        for (component, name), operations in counts.items()
    ]


def _sum(entries: Iterable[Entry]) -> OperationCost:
    return sum((entry.cost for entry in entries), OperationCost())


def cost_of(operations: Operations, lora: bool = False) -> OperationCost:
    """The cost of operations; ``lora``: whether adapters do them."""
    weighted = {name: _integer(getattr(operations, name) * getattr(COSTS, name)) for name in OPERATIONS}
    return OperationCost(**weighted, lora=sum(weighted.values()) if lora else 0)


def _integer(count: int | Fraction) -> int:
    # A recurrence of an odd size is priced at half an operation too many or too few in Megatron's count: round it once.
    return count if isinstance(count, int) else round(count)


# ---- what the kinds of terms do to one row -------------------------------------------------------


def _plain(factor: Fraction) -> int | Fraction:
    """An int where it is one: much faster."""
    return factor.numerator if factor.denominator == 1 else factor


def _matmul(term: Term) -> Operations:
    return _plain(term.times) * dot(term.k, term.n)


def _core(term: Term) -> Operations:
    if term.name.endswith("scores_value"):
        # The sum runs over the keys: ``terms.softmax`` takes away the addition that the first key does not need.
        return _products(term)
    return _matmul(term)


def _products(term: Term) -> Operations:
    """An addition with every multiplication."""
    return _plain(term.times * term.k * term.n) * Operations(additions=1, multiplications=1)


def _norm(term: Term) -> Operations:
    return _plain(term.times) * (layer_norm(term.k) if term.bias else rms_norm(term.k))


COUNTED: Mapping[Kind, Callable[[Term], Operations]] = {
    Kind.LINEAR: _matmul,
    Kind.ROUTER: _matmul,
    Kind.GATE: _matmul,
    Kind.CONVOLUTION: _matmul,
    Kind.PATCH_EMBEDDING: _matmul,
    Kind.HYPER_CONNECTION: _matmul,
    # The same sums stand as elementwise terms.
    Kind.STREAM_MIXING: lambda term: NOTHING,
    Kind.CORE: _core,
    Kind.SCAN: _products,
    Kind.NORM: _norm,
    Kind.LATENT_NORM: _norm,
    Kind.TABLE: lambda term: NOTHING,
    Kind.JOIN: lambda term: NOTHING,
    Kind.ELEMENTWISE: lambda term: term.operations,
}
#: Kinds whose bias is an addition beside the matmul (a norm's is part of the norm).
BIASED = (Kind.LINEAR, Kind.ROUTER, Kind.CONVOLUTION, Kind.PATCH_EMBEDDING)
