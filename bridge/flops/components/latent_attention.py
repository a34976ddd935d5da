"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): low-rank queries, keys and values.

With ``absorbed`` the core works on the latents themselves, as sparse attention needs (DeepSeek-V3.2, arXiv:2512.02556).
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.components.self_attention import COMPONENT, CORE
from bridge.flops.elementwise import ROPE
from bridge.flops.rows import Cache, Mixer
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Context, Kind, Role, Term, core, elementwise, join, norm, softmax


def latent_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    q_lora_rank: int | None,
    kv_lora_rank: int,
    qk_head_dim: int,
    qk_pos_emb_head_dim: int,
    v_head_dim: int,
    context: Context,
    absorbed: bool = False,
    proj_bias: bool = False,
    down_bias: bool = False,
) -> list[Term]:
    """The terms of one MLA block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_attention_heads: heads.
        q_lora_rank: rank of the query compression, None for a direct projection.
        kv_lora_rank: rank of the key/value compression.
        qk_head_dim, qk_pos_emb_head_dim: width of a query/key head without and of its RoPE part.
        v_head_dim: width of a value head.
        context: which keys a query sees.
        absorbed: heads attend to the kv_lora_rank-wide latent and its RoPE part directly.
        proj_bias: a bias on the output projection.
        down_bias: biases on the two compressions.
    """
    heads, query_size = num_attention_heads, qk_head_dim + qk_pos_emb_head_dim
    kv_down = kv_lora_rank + qk_pos_emb_head_dim
    if q_lora_rank:
        terms = [
            Term("linear_q_down_proj", COMPONENT, hidden_size, q_lora_rank, inputs=("normed",), outputs=("q_latent",),
                 bias=q_lora_rank * down_bias),
            norm("q_layernorm", q_lora_rank, COMPONENT, source="q_latent", to="q_latent", kind=Kind.LATENT_NORM),
            Term("linear_q_up_proj", COMPONENT, q_lora_rank, heads * query_size, inputs=("q_latent",), outputs=("query",),
                 roles=Role.LATENT_PROJECTION),
        ]  # fmt: skip
    else:
        queries = Term("linear_q_proj", COMPONENT, hidden_size, heads * query_size, inputs=("normed",), outputs=("query",))
        terms = [queries.marked(Role.LATENT_PROJECTION)]
    terms += [
        # The compression also yields the RoPE part of the keys, which bypasses the norm and the up projection.
        Term("linear_kv_down_proj", COMPONENT, hidden_size, kv_down, inputs=("normed",), outputs=("kv_latent", "key_rope"),
             bias=kv_down * down_bias),
        norm("kv_layernorm", kv_lora_rank, COMPONENT, source="kv_latent", to="kv_latent", kind=Kind.LATENT_NORM),
        Term("linear_kv_up_proj", COMPONENT, kv_lora_rank, heads * (qk_head_dim + v_head_dim),
             inputs=("kv_latent",), outputs=("key_value",), roles=Role.LATENT_PROJECTION | Role.LATENT_UP),
    ]  # fmt: skip
    key_width, value_width = (kv_down, kv_lora_rank) if absorbed else (query_size, v_head_dim)
    # A key is its up-projected part beside the RoPE part: it needs a gradient where either does.
    terms += [
        elementwise("rope_query", COMPONENT, heads * qk_pos_emb_head_dim * ROPE, "query"),
        elementwise("rope_key", COMPONENT, qk_pos_emb_head_dim * ROPE, "key_rope"),
        join("key_value", "key_rope", to="key"),
        core("query_key", CORE, context, head_size=key_width, heads=heads, inputs=("query", "key"), output="scores"
             ).marked(Role.LATENT_KEYS),
        *softmax(CORE, context, heads=heads, value_size=value_width),
        core("scores_value", CORE, context, head_size=value_width, heads=heads, inputs=("scores", "key_value"), output="context"
             ).marked(Role.LATENT_VALUES),
        Term("linear_proj", COMPONENT, heads * v_head_dim, hidden_size, inputs=("context",), bias=hidden_size * proj_bias),
    ]  # fmt: skip
    return [term.under("self_attention.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def terms(build: Build, layer: Layer, *, context: Context | None = None, absorbed: bool = False) -> list[Term]:
    """The terms of a layer's attention; ``context`` overrides the layer's own."""
    shape = build.shape
    return latent_attention(
        hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        q_lora_rank=shape.q_lora_rank,
        kv_lora_rank=shape.kv_lora_rank,
        qk_head_dim=shape.qk_head_dim,
        qk_pos_emb_head_dim=shape.qk_pos_emb_head_dim,
        v_head_dim=shape.v_head_dim,
        context=context or layer.context,
        absorbed=absorbed,
        proj_bias=shape.add_bias_linear,
    )


def latents(shape: ModelShape, kept: Context, read: Context | None = None) -> Cache:
    """A latent and the RoPE part of its key, once for all heads."""
    return Cache("latents", shape.kv_lora_rank + shape.qk_pos_emb_head_dim, kept, read)


MIXER = Mixer(
    name="mla",
    symbol="+",
    required=("num_attention_heads",),
    takes="*",
    terms=terms,
    cache=lambda shape, layer: [latents(shape, layer.context)],
    option="multi_latent_attention",
    trains=True,
)
