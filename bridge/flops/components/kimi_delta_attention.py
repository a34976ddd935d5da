"""Kimi delta attention (Kimi Linear, arXiv:2510.26692): the delta rule with a gate per channel.

Projections for queries, keys, values and output of width P = heads x head_dim, low-rank pairs for decay and output gate,
one write strength per head, three short convolutions, and the recurrence on the head_dim x head_dim state of each head.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer, required
from bridge.flops.components.gated_delta_net import DECAY, STATE_MACS, by_token
from bridge.flops.elementwise import MULTIPLICATION, SIGMOID, SILU, l2_norm
from bridge.flops.rows import Cache, Mixer, recurrent
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Term, elementwise, join, norm, table

COMPONENT = "kimi_delta_attention"


def kimi_delta_attention(
    *, hidden_size: int, num_heads: int, head_dim: int, conv_kernel_size: int, low_rank_gate: bool = False
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_heads, head_dim: heads and their width, for keys and values alike.
        conv_kernel_size: taps of the depthwise convolutions over queries, keys and values.
        low_rank_gate: the output gate goes through ``head_dim`` channels.
    """
    width = num_heads * head_dim
    projections = [
        Term(name, COMPONENT, hidden_size, width, inputs=("normed",), outputs=(value,))
        for name, value in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("g_proj", "gate"))
        if not low_rank_gate or name != "g_proj"
    ]
    if low_rank_gate:
        projections.append(Term("g_a_proj", COMPONENT, hidden_size, head_dim, inputs=("normed",), outputs=("narrow_gate",)))
        projections.append(Term("g_b_proj", COMPONENT, head_dim, width, inputs=("narrow_gate",), outputs=("gate",)))
    convolutions = [
        Term(f"{name}_conv1d", COMPONENT, conv_kernel_size, width, inputs=(value,), outputs=(value,), kind=Kind.CONVOLUTION)
        for name, value in (("q", "query"), ("k", "key"), ("v", "value"))
    ]
    terms = [
        *projections,
        *convolutions,
        Term("b_proj", COMPONENT, hidden_size, num_heads, inputs=("normed",), outputs=("value",)),
        Term("f_a_proj", COMPONENT, hidden_size, head_dim, inputs=("normed",), outputs=("decay",)),
        Term("f_b_proj", COMPONENT, head_dim, width, inputs=("decay",), outputs=("value",)),
        table("A_log", COMPONENT, num_heads, source="value", to=("value",)),
        table("dt_bias", COMPONENT, width, source="value", to=("value",)),
        *(elementwise("convolution_activation", COMPONENT, width * SILU, value) for value in ("query", "key", "value")),
        *(elementwise("query_key_norm", COMPONENT, num_heads * l2_norm(head_dim), value) for value in ("query", "key")),
        elementwise("decay_and_strength", COMPONENT, width * DECAY + num_heads * SIGMOID, "value"),
        Term("delta_rule", COMPONENT, num_heads * head_dim * head_dim, 1, times=Fraction(STATE_MACS),
             inputs=("query", "key", "value"), outputs=("context",), kind=Kind.SCAN, weight=False),
        norm("o_norm", head_dim, COMPONENT, source="context", to="context", times=num_heads),
        join("context", "gate", to="context"),
        elementwise("output_gate", COMPONENT, width * (SIGMOID + MULTIPLICATION), "context"),
        Term("o_proj", COMPONENT, width, hidden_size, inputs=("context",)),
    ]  # fmt: skip
    return [term.under("self_attention.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return kimi_delta_attention(
        hidden_size=build.hidden_size,
        num_heads=required(shape, "kimi_linear_num_heads"),
        head_dim=required(shape, "kimi_linear_head_dim"),
        conv_kernel_size=shape.kimi_linear_conv_kernel_size,
        low_rank_gate=shape.kimi_linear_low_rank_gate,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    heads, size = shape.kimi_linear_num_heads or 0, shape.kimi_linear_head_dim or 0
    return recurrent(heads * size * size, 3 * heads * size, shape.kimi_linear_conv_kernel_size)


MIXER = Mixer(
    name="kda",
    option="kimi_kda_layers",
    layers=lambda shape: [number in shape.kimi_kda_layers for number in range(1, (shape.num_layers or 0) + 1)],
    beside="mla",
    terms=_terms,
    cache=_caches,
    required=("kimi_linear_num_heads", "kimi_linear_head_dim"),
    executed=by_token(COMPONENT, STATE_MACS),
    colour={COMPONENT: "sky"},
)
