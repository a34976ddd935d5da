"""Gated short convolution (LFM2, Liquid AI): a few taps along the tokens between two gates, in place of attention."""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import MULTIPLICATION
from bridge.flops.frequencies import flagged
from bridge.flops.rows import Cache, Mixer
from bridge.flops.statistics import TOKENS, Statistic
from bridge.flops.terms import Kind, Rows, Term, elementwise

COMPONENT = "short_convolution"


def short_convolution(*, hidden_size: int, kernel: int, bias: bool, positions: Rows = TOKENS) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream, and of the convolution.
        kernel: taps of the depthwise convolution.
        bias: biases on the convolution and on both projections.
        positions: output positions of the convolution.
    """
    terms = [
        Term("in_proj", COMPONENT, hidden_size, 3 * hidden_size, inputs=("normed",), outputs=("gates_and_values",),
             bias=3 * hidden_size * bias),
        elementwise("input_gate", COMPONENT, hidden_size * MULTIPLICATION, "gates_and_values"),
        Term("conv1d", COMPONENT, kernel, hidden_size, positions, inputs=("gates_and_values",), outputs=("context",),
             kind=Kind.CONVOLUTION, bias=hidden_size * bias),
        elementwise("output_gate", COMPONENT, hidden_size * MULTIPLICATION, "context"),
        Term("out_proj", COMPONENT, hidden_size, hidden_size, inputs=("context",), bias=hidden_size * bias),
    ]  # fmt: skip
    return [term.under("mixer.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape, padded = build.shape, build.convention.padded_short_convolution
    return short_convolution(
        hidden_size=build.hidden_size,
        kernel=shape.short_conv_kernel,
        bias=shape.short_conv_bias,
        positions=Statistic("length_plus", sizes=(shape.short_conv_kernel - 1,)) if padded else TOKENS,
    )


MIXER = Mixer(
    name="short_convolution",
    option="short_conv_layers",
    layers=lambda shape: flagged(shape, "short_conv_layers"),
    terms=_terms,
    cache=lambda shape, layer: [Cache("convolution_inputs", (shape.short_conv_kernel - 1) * (shape.hidden_size or 0))],
    colour={COMPONENT: "sky"},
)
