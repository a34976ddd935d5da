"""Mamba's first generation (Gu & Dao, arXiv:2312.00752): a selective scan whose steps, inputs and outputs follow from the tokens.

The scan is priced as Mamba-2's: 7 FLOPs per token and entry of the state.
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.components.mamba import SCAN_MACS, STEP
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, SILU
from bridge.flops.frequencies import flagged
from bridge.flops.rows import Cache, Mixer, recurrent
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Kind, Term, elementwise, norm, table

COMPONENT = "selective_scan"


def selective_scan(
    *,
    hidden_size: int,
    inner_size: int,
    state_dim: int,
    dt_rank: int,
    kernel: int,
    conv_bias: bool = True,
    proj_bias: bool = False,
    normed: bool = False,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        inner_size: width inside.
        state_dim: state entries per channel.
        dt_rank: width that the step sizes are projected from.
        kernel: taps of the depthwise convolution.
        conv_bias: a bias on the convolution.
        proj_bias: biases on the projections into the block and out of it.
        normed: norms on what the step sizes are projected from and on both matrices of the state (Jamba).
    """
    parts = {"dt": dt_rank, "b": state_dim, "c": state_dim}
    latents = tuple(parts)
    terms = [
        Term("in_proj", COMPONENT, hidden_size, 2 * inner_size, inputs=("normed",), outputs=("values", "gate"),
             bias=2 * inner_size * proj_bias),
        Term("conv1d", COMPONENT, kernel, inner_size, inputs=("values",), outputs=("values",), kind=Kind.CONVOLUTION,
             bias=inner_size * conv_bias),
        elementwise("convolution_activation", COMPONENT, inner_size * SILU, "values"),
        Term("x_proj", COMPONENT, inner_size, sum(parts.values()), inputs=("values",), outputs=latents),
        *(norm(f"{name}_layernorm", size, COMPONENT, source=name, to=name) for name, size in parts.items() if normed),
        Term("dt_proj", COMPONENT, dt_rank, inner_size, inputs=("dt",), outputs=("steps",), bias=inner_size),
        table("A_log", COMPONENT, inner_size, state_dim, source="steps", to=("steps",)),
        elementwise("step_and_decay", COMPONENT, inner_size * STEP, "steps"),
        Term("scan", COMPONENT, inner_size, state_dim, times=SCAN_MACS, inputs=("values", "steps", "b", "c"),
             outputs=("context",), kind=Kind.SCAN, weight=False),
        table("D", COMPONENT, inner_size, source="context", to=("context",)),
        elementwise("skip", COMPONENT, inner_size * (ADDITION + MULTIPLICATION), "context"),
        elementwise("output_gate", COMPONENT, inner_size * (SILU + MULTIPLICATION), "context", "gate"),
        Term("out_proj", COMPONENT, inner_size, hidden_size, inputs=("context",), bias=hidden_size * proj_bias),
    ]  # fmt: skip
    return [term.under("mixer.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return selective_scan(
        hidden_size=build.hidden_size,
        inner_size=shape.selective_scan_inner_size or 0,
        state_dim=shape.selective_scan_state_dim,
        dt_rank=shape.selective_scan_dt_rank or 0,
        kernel=shape.selective_scan_kernel,
        conv_bias=shape.selective_scan_conv_bias,
        proj_bias=shape.selective_scan_proj_bias,
        normed=shape.selective_scan_norms,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    inner = shape.selective_scan_inner_size or 0
    return recurrent(inner * shape.selective_scan_state_dim, inner, shape.selective_scan_kernel)


_BY_TOKEN = (
    f"{COMPONENT}: its scan is counted as {2 * SCAN_MACS} FLOPs per token and entry of the state; transformers' own code "
    "runs one matrix product per token there, and fused kernels none"
)

MIXER = Mixer(
    name="selective_scan",
    option="selective_scan_layers",
    layers=lambda shape: flagged(shape, "selective_scan_layers"),
    terms=_terms,
    cache=_caches,
    executed=lambda framework: _BY_TOKEN,
    colour={COMPONENT: "sky"},
)
