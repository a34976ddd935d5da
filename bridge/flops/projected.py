"""The plan of a training loop whose output layer is fused with the loss and projects only the positions that have a label.

The tokens of a prompt have no labels, so how many positions are projected is known only from the batches.  A fused layer does
not store the logits and computes them again in the backward pass, which counts as recomputation.
"""

from __future__ import annotations

from bridge.flops.plan import Plan
from bridge.flops.statistics import PROJECTED, TOKENS
from bridge.flops.terms import Pass, Role, Term

_WHOLE = "the output layer is fused with the loss and projects some positions only, but the plan has no output layer to say so of"


def projected(plan: Plan) -> Plan:
    """The same plan, its output layer priced by ``projected_tokens``; where it has none, a sentence in ``not_counted``."""
    found = any(map(_projects, plan.terms))
    return plan.with_terms(tuple(map(_changed, plan.terms)), plan.not_counted if found else (*plan.not_counted, _WHOLE))


def _projects(term: Term) -> bool:
    return Role.OUTPUT in term.roles and Role.ONLOOKER not in term.roles and term.rows == TOKENS


def _changed(term: Term) -> Term:
    if not _projects(term):
        return term
    again = Pass.RECOMPUTE if term.passes & Pass.BACKWARD else Pass.NONE
    return term.changed(rows=PROJECTED, passes=term.passes | again)
