"""Gated delta net (Yang et al., arXiv:2412.06464; Qwen3-Next): projections, short convolution, delta-rule recurrence.

The recurrence is priced as 4 multiply-accumulates per token and entry of the dk x dv state of every value head: decay,
read, write and output.  Chunked kernels do more.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, SIGMOID, SILU, SOFTPLUS, Operations, l2_norm
from bridge.flops.frameworks import Framework
from bridge.flops.frequencies import linear_layers
from bridge.flops.rows import Cache, Mixer, recurrent
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Term, elementwise, norm, table

COMPONENT = "gated_delta_net"
STATE_MACS = 4
DECAY = ADDITION + SOFTPLUS + MULTIPLICATION + Operations(exponentiations=2)


def gated_delta_net(
    *,
    hidden_size: int,
    key_head_dim: int,
    num_key_heads: int,
    value_head_dim: int,
    num_value_heads: int,
    conv_kernel_dim: int,
    second_generation: bool = False,
    state_key_dim: int | None = None,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        key_head_dim, num_key_heads: the query/key heads.
        value_head_dim, num_value_heads: the value heads; each holds one state.
        conv_kernel_dim: taps of the depthwise convolution over queries, keys and values.
        second_generation: ``gdn2``, whose input projection makes 4 K + 3 U instead of 2 K + 2 U + 2 v values.
        state_key_dim: rows of a head's state; key_head_dim when None (Megatron takes value_head_dim).
    """
    keys, values = key_head_dim * num_key_heads, value_head_dim * num_value_heads
    projected = 4 * keys + 3 * values if second_generation else 2 * keys + 2 * values + 2 * num_value_heads
    state = num_value_heads * (key_head_dim if state_key_dim is None else state_key_dim) * value_head_dim
    conv = 2 * keys + values
    terms = [
        Term("in_proj", COMPONENT, hidden_size, projected, inputs=("normed",), outputs=("qkv",)),
        Term("conv1d", COMPONENT, conv_kernel_dim, conv, inputs=("qkv",), outputs=("qkv",), kind=Kind.CONVOLUTION),
        table("A_log", COMPONENT, num_value_heads, source="qkv", to=("qkv",)),
        table("dt_bias", COMPONENT, num_value_heads, source="qkv", to=("qkv",)),
        elementwise("convolution_activation", COMPONENT, conv * SILU, "qkv"),
        elementwise("query_key_norm", COMPONENT, 2 * num_key_heads * l2_norm(key_head_dim), "qkv"),
        # exp(-exp(A) softplus(a + dt)) and sigmoid(b), a number each per value head.
        elementwise("decay_and_strength", COMPONENT, num_value_heads * (DECAY + SIGMOID), "qkv"),
        Term("delta_rule", COMPONENT, state, 1, times=Fraction(STATE_MACS), inputs=("qkv", "qkv"), outputs=("context",),
             kind=Kind.SCAN, weight=False),
        norm("out_norm", value_head_dim, COMPONENT, source="context", to="context", times=num_value_heads),
        elementwise("output_gate", COMPONENT, values * (SILU + MULTIPLICATION), "context"),
        Term("out_proj", COMPONENT, values, hidden_size, inputs=("context",)),
    ]  # fmt: skip
    return [term.under("self_attention.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return gated_delta_net(
        hidden_size=build.hidden_size,
        key_head_dim=shape.linear_key_head_dim,
        num_key_heads=shape.linear_num_key_heads,
        value_head_dim=shape.linear_value_head_dim,
        num_value_heads=shape.linear_num_value_heads,
        conv_kernel_dim=shape.linear_conv_kernel_dim,
        second_generation=shape.experimental_attention_variant == "gdn2",
        state_key_dim=shape.linear_value_head_dim if build.convention.square_delta_state else None,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    keys = shape.linear_key_head_dim * shape.linear_num_key_heads
    values = shape.linear_value_head_dim * shape.linear_num_value_heads
    return recurrent(shape.linear_key_head_dim * values, 2 * keys + values, shape.linear_conv_kernel_dim)


def by_token(component: str, macs: int | str) -> Callable[[Framework], str]:
    """What a delta rule says of its chunked kernels (``Channel.executed``)."""
    return lambda framework: (
        f"{component}: its delta rule is counted as {macs} multiply-accumulates per token and entry of the state; what runs "
        "takes whole chunks, with products between the tokens of each"
    )


MIXER = Mixer(
    name="gdn",
    symbol="G",
    variant=("gdn", "gated_delta_net", "gdn2"),
    layers=linear_layers,
    terms=_terms,
    cache=_caches,
    executed=by_token(COMPONENT, STATE_MACS),
    colour={COMPONENT: "sky"},
)
