"""Self attention: multi-head, grouped-query, with output gate, shared keys and values, any head width.

Grouped-query attention: Ainslie et al., arXiv:2305.13245.  FLOPs of a layer: Narayanan et al., arXiv:2104.04473, appendix.
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, ROPE, SIGMOID
from bridge.flops.rows import Cache, Mixer
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Context, Term, core, elementwise, join, norm, softmax, table

COMPONENT = "self_attention"
CORE = "core_attention"


def self_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    kv_channels: int,
    v_channels: int = 0,
    context: Context,
    output_gate: bool = False,
    key_is_value: bool = False,
    shares_kv: bool = False,
    fused: bool = True,
    qkv_bias: bool = False,
    key_bias: bool = True,
    position_bias: bool = False,
    proj_bias: bool = False,
    head_norm: str = "",
    norm_bias: bool = False,
    sinks: bool = False,
    rotated: int = 0,
    output_size: int | None = None,
    to: str = "hidden",
) -> list[Term]:
    """The terms of one attention block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_attention_heads: query heads.
        num_query_groups: key/value heads.
        kv_channels: width of one head.
        v_channels: width of a value head where it is another one, else 0.
        context: which keys a query sees.
        output_gate: a gate as wide as the queries, projected with them (Qwen3-Next).
        key_is_value: keys are projected once and serve as values too (Gemma 4's global layers).
        shares_kv: keys and values come from an earlier layer (Gemma 3n): only queries are projected.
        fused: one matmul linear_qkv (megatron-core), or one each for q, k and v (Hugging Face).
        qkv_bias, key_bias, proj_bias: biases; key_bias False takes the keys' away (Whisper).
        position_bias: a learned bias by relative position is added to the scores (T5).
        head_norm: ``head`` for a norm over each query and key head, ``full`` for one over the whole projection.
        norm_bias: whether that norm has a bias.
        sinks: a learned attention sink per head.
        rotated: channels of a head that RoPE turns.
        output_size, to: width and name of what it writes; the residual stream when unset.
    """
    value_channels = v_channels or kv_channels
    query_size, key_size = num_attention_heads * kv_channels, num_query_groups * kv_channels
    widths = {
        "linear_q": query_size * (2 if output_gate else 1),
        "linear_k": key_size,
        "linear_v": num_query_groups * value_channels,
    }
    outputs: dict[str, tuple[str, ...]] = {"linear_q": ("query",), "linear_k": ("key",), "linear_v": ("value",)}
    if key_is_value:
        del widths["linear_v"]
        outputs["linear_k"] = ("key", "value")
    if shares_kv:
        widths = {"linear_q": widths["linear_q"]}
    biases = {name: n * (qkv_bias and (key_bias or name != "linear_k")) for name, n in widths.items()}
    parts: tuple[tuple[str, int], ...] = ()
    if fused:
        parts = tuple(widths.items())
        biases = {"linear_qkv": sum(biases.values())}
        outputs = {"linear_qkv": tuple(value for name in widths for value in outputs[name])}
        widths = {"linear_qkv": sum(widths.values())}

    terms = [
        Term(name, COMPONENT, hidden_size, n, inputs=("normed",), outputs=outputs[name], bias=biases[name], parts=parts)
        for name, n in widths.items()
    ]
    if head_norm:
        full = head_norm == "full"

        def head(name: str, size: int, heads: int, value: str) -> Term:
            size, times = (size, 1) if full else (kv_channels, heads)
            return norm(name, size, COMPONENT, source=value, to=value, bias=norm_bias, times=times)

        terms.append(head("q_layernorm", query_size, num_attention_heads, "query"))
        if not shares_kv:
            terms.append(head("k_layernorm", key_size, num_query_groups, "key"))
    if rotated:
        terms.append(elementwise("rope_query", COMPONENT, rotated * num_attention_heads * ROPE, "query"))
        if not shares_kv:
            terms.append(elementwise("rope_key", COMPONENT, rotated * num_query_groups * ROPE, "key"))

    def product(name: str, size: int, first: str, second: str, output: str) -> Term:
        return core(name, CORE, context, head_size=size, heads=num_attention_heads, inputs=(first, second), output=output)

    terms.append(product("query_key", kv_channels, "query", "key", "scores"))
    if position_bias:
        terms.append(join("scores", "position_bias", to="scores"))
        terms.append(elementwise("position_bias", CORE, num_attention_heads * ADDITION, "scores", rows=context))
    if sinks:
        sink = table("softmax_offset", CORE, num_attention_heads, source="scores", to=("scores",))
        terms.append(sink.under("core_attention."))
    terms += softmax(CORE, context, heads=num_attention_heads, value_size=value_channels, sinks=sinks)
    terms.append(product("scores_value", value_channels, "scores", "value", "context"))
    if output_gate:
        terms.append(elementwise("output_gate", COMPONENT, query_size * (SIGMOID + MULTIPLICATION), "context"))
    width, inner = output_size or hidden_size, num_attention_heads * value_channels
    terms.append(Term("linear_proj", COMPONENT, inner, width, inputs=("context",), outputs=(to,), bias=width * proj_bias))
    return [term.under("self_attention.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def terms(build: Build, layer: Layer) -> list[Term]:
    """The terms of a layer's attention."""
    shape = build.shape
    groups, head_size = _heads(shape, layer)
    return self_attention(
        hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        num_query_groups=groups,
        kv_channels=head_size,
        v_channels=shape.v_channels or 0,
        context=layer.context,
        output_gate=shape.attention_output_gate,
        key_is_value=shape.attention_k_eq_v or (layer.is_global and shape.global_attention_k_eq_v),
        shares_kv=layer.shares_kv,
        fused=build.fused,
        qkv_bias=shape.add_qkv_bias or shape.add_bias_linear,
        key_bias=shape.add_key_bias,
        position_bias=bool(shape.relative_attention_num_buckets),
        proj_bias=shape.add_proj_bias or shape.add_bias_linear,
        head_norm="full" if shape.qk_layernorm == "full" else "head" if shape.qk_layernorm else "",
        norm_bias=build.norm_bias,
        sinks=shape.softmax_type == "learnable" or (shape.softmax_type == "learnable_local" and layer.context.shape == "window"),
        rotated=build.rotated(layer, head_size),
        output_size=shape.attention_output_size,
        to="narrow" if shape.attention_output_size else "hidden",
    )


def caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    """Keys and values. Shared projections still give separate keys and values, which norms and RoPE distinguish."""
    groups, head_size = _heads(shape, layer)
    entries = groups * (head_size + (shape.v_channels or head_size))
    return [Cache("keys_and_values", entries, layer.context, owned=not layer.shares_kv)]


def _heads(shape: ModelShape, layer: Layer) -> tuple[int, int]:
    """Key/value heads of a layer and the width of one."""
    groups = layer.num_query_groups or (layer.is_global and shape.global_num_query_groups) or shape.key_value_heads
    return groups, (layer.is_global and shape.global_kv_channels) or shape.head_size


MIXER = Mixer(
    name="attention",
    symbol="*",
    required=("num_attention_heads",),
    terms=terms,
    cache=caches,
    trains=True,
    colour={COMPONENT: "green", CORE: "orange"},
)
