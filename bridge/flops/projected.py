"""A plan of a loop whose output layer is fused with the loss: it projects the positions that are learned from, and no others.

Of a prompt nothing is learned, so a loop may leave it out there, and only the batches say how many positions are left.  Without
the logits in memory a fused layer computes them once more in the backward pass, which is recomputation.
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
