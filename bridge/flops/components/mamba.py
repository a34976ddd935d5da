"""Mamba-2 (Dao & Gu, arXiv:2405.21060): input projection, short convolution, state-space scan, output projection.

The scan is priced as 7 FLOPs (3.5 multiply-accumulates) per token and entry of the state, as Megatron does; the chunked
kernel does more.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.elementwise import ADDITION, MULTIPLICATION, SILU, SOFTPLUS, Operations
from bridge.flops.terms import Kind, Term, elementwise, norm, table

COMPONENT = "mamba"
SCAN_MACS = Fraction(7, 2)
STEP = ADDITION + SOFTPLUS + MULTIPLICATION + Operations(exponentiations=1)


def mamba(
    *,
    hidden_size: int,
    inner_size: int,
    state_dim: int,
    num_groups: int,
    num_heads: int,
    conv_kernel_dim: int,
    conv_is_free: bool = False,
    normed: bool = True,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        inner_size: width inside, num_heads x head_dim.
        state_dim: state entries per channel.
        num_groups: groups that share their B and C.
        num_heads: heads, one step size each.
        conv_kernel_dim: taps of the depthwise convolution over x, B and C.
        conv_is_free: its multiply-accumulates are not counted (its parameters are).
        normed: a norm on the gated output of the scan.
    """
    conv = inner_size + 2 * num_groups * state_dim
    terms = [
        Term("in_proj", COMPONENT, hidden_size, inner_size + conv + num_heads, inputs=("normed",), outputs=("xbc",)),
        Term("conv1d", COMPONENT, conv_kernel_dim, conv, times=Fraction(not conv_is_free), inputs=("xbc",), outputs=("xbc",),
             kind=Kind.CONVOLUTION, bias=conv),
        *(table(name, COMPONENT, num_heads, source="xbc", to=("xbc",))
          for name in ("A_log", "D", "dt_bias")),
        elementwise("convolution_activation", COMPONENT, conv * SILU, "xbc"),
        # dt = softplus(dt + bias), exp(dt A), a number each per head.
        elementwise("step_and_decay", COMPONENT, num_heads * STEP, "xbc"),
        Term("scan", COMPONENT, inner_size, state_dim, times=SCAN_MACS, inputs=("xbc", "xbc"), outputs=("context",),
             kind=Kind.SCAN, weight=False),
        elementwise("skip", COMPONENT, inner_size * (ADDITION + MULTIPLICATION), "context"),
        elementwise("output_gate", COMPONENT, inner_size * (SILU + MULTIPLICATION), "context"),
        *([norm("norm", inner_size, COMPONENT, source="context", to="context")] if normed else []),
        Term("out_proj", COMPONENT, inner_size, hidden_size, inputs=("context",)),
    ]  # fmt: skip
    return [term.under("mixer.") for term in terms]
