"""Bytes of a whole model between two steps, held once, without replicas and padding."""

from __future__ import annotations

from bridge.flops.plan import Plan
from bridge.planning.buffers import Optimizer
from bridge.planning.four_bits import in_four_bits, stored_bytes


def state_bytes(plan: Plan) -> int:
    """Bytes of weights, gradients and optimizer states of a whole model, held once (bf16 weights, fp32 gradients, Adam)."""
    optimizer, trainable = Optimizer(), plan.parameters()["trainable"]
    packed = [term for term in plan.built_terms() if in_four_bits(plan, term) and not plan.trains(term)]
    saved = sum(term.copies * (optimizer.weight_bytes * term.k * term.n - stored_bytes(term.k * term.n)) for term in packed)
    each = optimizer.gradient_bytes + optimizer.state_bytes
    return optimizer.weight_bytes * plan.parameters()["total"] - saved + each * trainable
