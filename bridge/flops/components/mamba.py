"""Mamba-2 (Dao & Gu, arXiv:2405.21060): input projection, short convolution, state-space scan, output projection.

The scan is priced as 7 FLOPs (3.5 multiply-accumulates) per token and entry of the state, as Megatron does; the chunked
kernel does more.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.components import self_attention
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, SILU, SOFTPLUS, Operations
from bridge.flops.frameworks import Framework
from bridge.flops.rows import Cache, Mixer, recurrent
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Term, elementwise, norm, table

COMPONENT = "mamba"
SCAN_MACS = Fraction(7, 2)
#: Taps of the convolution: megatron-core's MambaMixer, argument d_conv.
CONV_KERNEL = 4
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


# ---- its rows ------------------------------------------------------------------------------------


def mixer_heads(shape: ModelShape) -> int:
    """Heads of a layer; twice the residual stream's width where their number is not set."""
    return shape.mamba_num_heads or 2 * (shape.hidden_size or 0) // shape.mamba_head_dim


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape, convention, heads = build.shape, build.convention, mixer_heads(build.shape)
    return mamba(
        hidden_size=build.hidden_size,
        inner_size=2 * build.hidden_size if convention.mamba_width_is_twice_hidden else heads * shape.mamba_head_dim,
        state_dim=shape.mamba_state_dim,
        num_groups=shape.mamba_num_groups,
        num_heads=heads,
        conv_kernel_dim=CONV_KERNEL,
        conv_is_free=not convention.mamba_convolution,
        normed=shape.mamba_rms_norm,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    inner = mixer_heads(shape) * shape.mamba_head_dim
    convolved = inner + 2 * shape.mamba_num_groups * shape.mamba_state_dim
    return recurrent(inner * shape.mamba_state_dim, convolved, CONV_KERNEL)


def _executed(framework: Framework) -> str:
    return (
        f"{COMPONENT}: its scan is counted as {2 * SCAN_MACS} FLOPs per token and entry of the state; what runs takes whole "
        "chunks, with products between the tokens of each, and its convolution the padding at both ends"
    )


MIXER = Mixer(name="mamba", symbol="M", terms=_terms, cache=_caches, executed=_executed, colour={COMPONENT: "sky"})
#: Side by side on one norm (Falcon-H1).
WITH_ATTENTION = Mixer(
    name="attention_and_mamba",
    symbol="P",
    required=("num_attention_heads",),
    terms=lambda build, layer: [*self_attention.terms(build, layer), *_terms(build, layer)],
    cache=lambda shape, layer: [*self_attention.caches(shape, layer), *_caches(shape, layer)],
    executed=_executed,
)
