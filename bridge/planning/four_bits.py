"""Weights of QLoRA (Dettmers et al., arXiv:2305.14314): four bits each, with scales that are quantized once more."""

from __future__ import annotations

from bridge.flops.plan import Plan
from bridge.flops.terms import Kind, Role, Term

#: Weights that share a scale of one byte, and scales that share one of their own in fp32, as bitsandbytes has them.
BLOCK, SCALES = 64, 256


def in_four_bits(plan: Plan, term: Term) -> bool:
    """Whether a frozen weight is stored in four bits: a linear layer's, but not an adapter's or the output layer's."""
    adapters = plan.model.adapters
    linear = term.kind is Kind.LINEAR and term.weight and ".adapter." not in term.path
    return adapters is not None and adapters.four_bits and linear and Role.OUTPUT not in term.roles


def stored_bytes(numel: int) -> int:
    """Bytes of ``numel`` weights at 4.127 bits each.

    >>> stored_bytes(64 * 256)
    8452
    """
    blocks = -(-numel // BLOCK)
    return -(-numel // 2) + blocks + 4 * -(-blocks // SCALES)
