"""Experts as they were routed: a plan that counts the assignments of tokens to experts that routers made.

From a configuration alone every token visits its top-k experts.  With a capacity some are dropped, or experts are filled up with
rows that no token requested: only the routers know what ran, and the configuration gives a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from bridge.flops.plan import Number, Plan
from bridge.flops.statistics import Over, Statistic
from bridge.flops.terms import Pass, Role, Term, TermPlace

_EXPERTS = ".experts."
#: Sentences of ``not_counted`` that no longer hold once routers count.
_TOLD = ("moe_expert_capacity_factor=", "moe_pad_expert_input_to_capacity=", "moe_token_dropping=")

_PADDED = "padded positions of a batch go through experts like tokens, and their work is counted"


def assignments(layer: int) -> Statistic:
    """Tokens that visited experts, each as often as it visited one.

    Args:
        layer: which of the layers with experts, from 0.
    """
    return Statistic("assignments", Over.ROUTED, (layer,))


def padding(layer: int) -> Statistic:
    """Rows that only filled experts up to their capacity; ``layer`` as for ``assignments``."""
    return Statistic("padding", Over.ROUTED, (layer,))


def expert_layers(plan: Plan) -> dict[str, int]:
    """Path of every layer of experts -> its number, from 0; without the layers of a teacher or a reference model."""
    return {path: number for number, path in enumerate(_places(plan))}


def expert_places(plan: Plan) -> list[int | TermPlace]:
    """The places in the pipeline of these layers, by their numbers."""
    return list(_places(plan).values())


def _places(plan: Plan) -> dict[str, int | TermPlace]:
    return {_layer(term): term.place for term in plan.terms if _is_routed(term)}


def _layer(term: Term) -> str:
    """Path of the layer of experts that a term belongs to."""
    return term.path.partition(_EXPERTS)[0]


def assignment_flops(plan: Plan) -> list[Number]:
    """Training FLOPs of one token's visit to one expert, for each layer of experts."""
    as_routed = routed(plan)
    visits = [assignments(layer) for layer in expert_layers(plan).values()]
    return [as_routed.evaluate([int(one == visit) for one in as_routed.statistics]) for visit in visits]


def expert_count(plan: Plan) -> int:
    """The largest number of experts that a layer has."""
    return max((term.copies for term in plan.terms if _is_routed(term)), default=0)


def _is_routed(term: Term) -> bool:
    visits = term.copies > 1 and term.times == term.active_copies
    return visits and _EXPERTS in term.path and Role.ONLOOKER not in term.roles


def routed(plan: Plan) -> Plan:
    """The same plan, with what experts do counted by ``assignments``, and in the ``hardware`` passes by ``padding`` too."""
    layers = expert_layers(plan)

    def terms() -> Iterator[Term]:
        for term in plan.terms:
            if not _is_routed(term):
                yield term
                continue
            layer = layers[_layer(term)]
            each = term.times / term.active_copies
            yield term.changed(rows=assignments(layer), times=each)
            passes = bin(term.passes.value).count("1")
            yield term.changed(rows=padding(layer), times=each * Fraction(passes), passes=Pass.PADDING, weight=False, bias=0)

    left_out = tuple(sentence for sentence in plan.not_counted if not sentence.startswith(_TOLD))
    return plan.with_terms(tuple(terms()), (*left_out, _PADDED))


@dataclass(frozen=True)
class Bound:
    """Rows that the experts of a layer compute.

    Attributes:
        rows: at most this many.
        exact: whether the number is exact for any routing.
    """

    rows: int
    exact: bool


def bound(tokens: int, topk: int, experts: int, capacity_factor: float | None = None, *, pad: bool = False) -> Bound:
    """What a configuration alone says of the rows of one layer and micro-batch.

    Args:
        tokens: that one rank routes: of its micro-batch, with sequence parallelism its part of it.
        topk: experts requested per token.
        experts: of the layer.
        capacity_factor: megatron-core's ``moe_expert_capacity_factor``; None or negative: nothing is dropped.
        pad: every expert is filled up to its capacity (``moe_pad_expert_input_to_capacity``).
    """
    if capacity_factor is None or capacity_factor < 0:
        return Bound(tokens * topk, exact=True)
    # As megatron-core rounds it: in floating point, and up.
    capacity = ceil(tokens * topk / experts * capacity_factor)
    if pad:
        return Bound(experts * capacity, exact=True)
    return Bound(min(tokens * topk, experts * capacity), exact=False)
