"""Gated delta product (Siems et al., arXiv:2502.10297): a delta rule that takes several Householder steps per token.

Inside Mamba's layer, with Mamba's sizes.  The recurrence is priced as 4 n + 3 FLOPs per token and entry of the state, n steps,
as Megatron-LM does: what a step by step kernel needs.  Chunked kernels do more.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.components.gated_delta_net import DECAY, by_token
from bridge.flops.components.mamba import CONV_KERNEL, mixer_heads
from bridge.flops.elementwise import MULTIPLICATION, SIGMOID, SILU, l2_norm
from bridge.flops.rows import Cache, Mixer, recurrent
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Role, Term, elementwise, norm, table

COMPONENT = "gated_delta_product"


def gated_delta_product(
    *,
    hidden_size: int,
    num_householder: int,
    head_dim: int,
    num_heads: int,
    state_dim: int,
    num_groups: int,
    conv_kernel_dim: int,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_householder: steps per token, each with its own key, value and strength.
        head_dim, num_heads: the value heads; each holds a state of state_dim x head_dim.
        state_dim, num_groups: the query/key heads.
        conv_kernel_dim: taps of the depthwise convolution over values, keys and queries.
    """
    steps, inner, keys = num_householder, num_heads * head_dim, num_groups * state_dim
    conv = inner * steps + keys * (1 + steps)
    terms = [
        # Output gate and values, queries and keys, decay and strengths.
        Term("in_proj", COMPONENT, hidden_size, (inner + keys + num_heads) * (1 + steps), inputs=("normed",), outputs=("qkv",),
             roles=Role.DELTA_PRODUCT_INPUT),
        Term("conv1d", COMPONENT, conv_kernel_dim, conv, inputs=("qkv",), outputs=("qkv",), kind=Kind.CONVOLUTION,
             roles=Role.DELTA_PRODUCT_CONVOLUTION),
        table("A_log", COMPONENT, num_heads, source="qkv", to=("qkv",)),
        table("dt_bias", COMPONENT, num_heads, source="qkv", to=("qkv",)),
        elementwise("convolution_activation", COMPONENT, conv * SILU, "qkv"),
        elementwise("query_key_norm", COMPONENT, num_groups * (1 + steps) * l2_norm(state_dim), "qkv"),
        elementwise("decay_and_strength", COMPONENT, num_heads * (DECAY + steps * SIGMOID), "qkv"),
        Term("delta_rule", COMPONENT, inner, state_dim, times=Fraction(4 * steps + 3, 2), inputs=("qkv", "qkv"),
             outputs=("context",), kind=Kind.SCAN, weight=False),
        norm("norm", inner, COMPONENT, source="context", to="context"),
        elementwise("output_gate", COMPONENT, inner * (SILU + MULTIPLICATION), "context"),
        Term("out_proj", COMPONENT, inner, hidden_size, inputs=("context",)),
    ]  # fmt: skip
    return [term.under("mixer.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return gated_delta_product(
        hidden_size=build.hidden_size,
        num_householder=shape.gdp_num_householder,
        head_dim=shape.mamba_head_dim,
        num_heads=mixer_heads(shape),
        state_dim=shape.mamba_state_dim,
        num_groups=shape.mamba_num_groups,
        conv_kernel_dim=CONV_KERNEL,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    inner, keys = mixer_heads(shape) * shape.mamba_head_dim, shape.mamba_num_groups * shape.mamba_state_dim
    convolved = inner * shape.gdp_num_householder + keys * (1 + shape.gdp_num_householder)
    return recurrent(inner * shape.mamba_state_dim, convolved, CONV_KERNEL)


MIXER = Mixer(
    name="gdp",
    takes="M",
    option="gated_delta_product",
    terms=_terms,
    cache=_caches,
    executed=by_token(COMPONENT, "2 n + 3/2"),
    colour={COMPONENT: "violet"},
)
