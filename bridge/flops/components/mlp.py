"""The dense feed-forward block, gated (SwiGLU, Shazeer, arXiv:2002.05202) or not."""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import MULTIPLICATION, SILU, Operations
from bridge.flops.rows import Channel
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Role, Term, elementwise, join, table


def mlp(
    *,
    hidden_size: int,
    ffn_hidden_size: int,
    gated: bool,
    fused: bool = True,
    bias: bool = False,
    component: str = "mlp",
    activation: Operations = SILU,
    learned: int = 0,
) -> list[Term]:
    """The terms of one MLP, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        ffn_hidden_size: inner width.
        gated: the up projection makes a gate beside the values.
        fused: gate and values in one matmul (megatron-core's linear_fc1), or one each (Hugging Face).
        bias: biases on both projections.
        component: line of the breakdown.
        activation: the operations of the activation function on one number.
        learned: numbers that the activation learns.
    """
    parts = halves(ffn_hidden_size) if gated else ()
    widths = dict(parts) if gated and not fused else {"linear_fc1": (2 if gated else 1) * ffn_hidden_size}
    ins = [
        Term(name, component, hidden_size, n, inputs=("normed",), outputs=(f"inner_{i}",), bias=n * bias, parts=parts * fused)
        for i, (name, n) in enumerate(widths.items())
    ]
    inner = [
        join(*(term.outputs[0] for term in ins), to="inner"),
        elementwise("activation", component, ffn_hidden_size * activation, "inner"),
    ]
    if learned:
        inner.append(table("activation", component, learned, source="inner", to=("inner",)))
    if gated:
        inner.append(elementwise("gate_product", component, ffn_hidden_size * MULTIPLICATION, "inner"))
    out = Term("linear_fc2", component, ffn_hidden_size, hidden_size, inputs=("inner",), bias=hidden_size * bias)
    return [*ins, *inner, out]


def halves(ffn_hidden_size: int) -> tuple[tuple[str, int], ...]:
    """What a fused up projection is made of."""
    return ("linear_fc1_gate", ffn_hidden_size), ("linear_fc1_up", ffn_hidden_size)


# ---- its row -------------------------------------------------------------------------------------


def width_factor(shape: ModelShape, layer: Layer) -> int:
    """How many times its usual width a layer's dense MLP has, beside experts too."""
    return 2 if layer.shares_kv and shape.use_double_wide_mlp else 1


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    terms = mlp(
        hidden_size=build.hidden_size,
        ffn_hidden_size=(layer.ffn_hidden_size or shape.ffn_size) * width_factor(shape, layer),
        gated=shape.gated_linear_unit,
        fused=build.fused,
        bias=shape.add_bias_linear or shape.add_mlp_bias,
        activation=build.activation,
        learned=2 if shape.activation == "xielu" else 0,
    )
    return [term.under("mlp.", Role.MLP) for term in terms]


CHANNEL = Channel(name="mlp", symbol="-", terms=_terms, trains=True, colour={"mlp": "blue"})
