"""Engram (arXiv:2601.07372): tables of hashed n-grams, gated by the hidden state and smoothed by a short convolution.

Per token and layer, with E the width of what is found and m streams of width h: keys E m h, values E h, the gate's dot
products m h, the convolution kernel m h multiply-accumulates.
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, SIGMOID, SILU
from bridge.flops.rows import Part
from bridge.flops.statistics import TOKENS
from bridge.flops.terms import Kind, Term, core, elementwise, join, norm, table

COMPONENT = "engram"


def engram(*, hidden_size: int, streams: int, memory_size: int, head_dim: int, kernel_size: int, table_rows: int) -> list[Term]:
    """The terms of one layer's memory, from the residual stream back to it.

    Args:
        hidden_size: width of one stream.
        streams: copies of the residual stream (hyper-connections); 1 without them.
        memory_size: width of what a token finds: (n-gram sizes) x heads x head_dim.
        head_dim: width of a table's rows.
        kernel_size: taps of the depthwise convolution.
        table_rows: rows of all tables together.
    """
    width = streams * hidden_size
    terms = [
        table("multi_head_embedding", COMPONENT, table_rows, head_dim, to=("memory",)),
        Term("key_proj", COMPONENT, memory_size, width, inputs=("memory",), outputs=("memory_key",), bias=width),
        norm("k_norm", width, COMPONENT, source="memory_key", to="memory_key"),
        norm("q_norm", width, COMPONENT, source="hidden", to="memory_query"),
        core("query_key", COMPONENT, TOKENS, head_size=hidden_size, heads=streams, inputs=("memory_query", "memory_key"),
             output="memory_gate"),
        elementwise("gate", COMPONENT, streams * SIGMOID, "memory_gate"),
        Term("value_proj", COMPONENT, memory_size, hidden_size, inputs=("memory",), outputs=("memory_value",), bias=hidden_size),
        join("memory_gate", "memory_value", to="gated"),
        elementwise("gated_value", COMPONENT, width * MULTIPLICATION, "gated"),
        norm("conv_norm", width, COMPONENT, source="gated", to="smoothed"),
        Term("short_conv", COMPONENT, kernel_size, width, inputs=("smoothed",), kind=Kind.CONVOLUTION),
        elementwise("activation", COMPONENT, width * (SILU + 2 * ADDITION), "hidden"),
        join("hidden", "gated", to="hidden"),
    ]  # fmt: skip
    return [term.under("engram.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return engram(
        hidden_size=build.hidden_size,
        streams=shape.hc_mult or 1,
        memory_size=(shape.engram_max_ngram_size - 1) * shape.engram_num_heads * shape.engram_head_dim,
        head_dim=shape.engram_head_dim,
        kernel_size=shape.engram_kernel_size,
        table_rows=shape.engram_table_rows[layer.memory - 1] if shape.engram_table_rows else 0,
    )


PART = Part(name=COMPONENT, option="engram_layers", terms=_terms, colour={COMPONENT: "pink"})
