"""Cross attention: queries from the decoder, keys and values from an encoder (Vaswani et al., arXiv:1706.03762)."""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.rows import Cache, Part
from bridge.flops.shapes import ModelShape
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Role, Term, core, norm, softmax

COMPONENT = "cross_attention"

#: The encoder's tokens, from which keys and values are projected.
ENCODER_TOKENS = Statistic("length", "encoder")
#: A query sees all of them.
ENCODER = Context("bidirectional", over="encoder")
#: Query tokens x encoder tokens of each sequence.
CROSS_PAIRS = Statistic("length", "cross")


def cross_attention(
    *,
    hidden_size: int,
    encoder_hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    kv_channels: int,
    fused: bool = True,
    qkv_bias: bool = False,
    key_bias: bool = True,
    proj_bias: bool = False,
    head_norm: bool = False,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the decoder's residual stream.
        encoder_hidden_size: width of the encoder's states.
        num_attention_heads, num_query_groups, kv_channels: query heads, key/value heads, width of one head.
        fused: keys and values in one matmul linear_kv (megatron-core) or one each (Hugging Face).
        qkv_bias, key_bias, proj_bias: biases; key_bias False takes the keys' away (Whisper).
        head_norm: a norm over each query and key head.
    """
    query_size, key_size = num_attention_heads * kv_channels, num_query_groups * kv_channels
    key_bias_size, value_bias_size = key_size * (qkv_bias and key_bias), key_size * qkv_bias

    def read(name: str, n: int, *values: str, bias: int) -> Term:
        """A projection of the encoder's states."""
        term = Term(
            name, COMPONENT, encoder_hidden_size, n, ENCODER_TOKENS, inputs=("encoder.states",), outputs=values, bias=bias
        )
        return term.marked(Role.ENCODER)

    terms = [
        Term("linear_q", COMPONENT, hidden_size, query_size, inputs=("normed",), outputs=("query",), bias=query_size * qkv_bias)
    ]
    if fused:
        terms.append(read("linear_kv", 2 * key_size, "key", "value", bias=key_bias_size + value_bias_size))
    else:
        terms.append(read("linear_k", key_size, "key", bias=key_bias_size))
        terms.append(read("linear_v", key_size, "value", bias=value_bias_size))
    if head_norm:
        terms.append(norm("q_layernorm", kv_channels, COMPONENT, source="query", to="query", times=num_attention_heads))
        keys = norm("k_layernorm", kv_channels, COMPONENT, source="key", to="key", rows=ENCODER_TOKENS, times=num_query_groups)
        terms.append(keys)

    def product(name: str, first: str, second: str, output: str) -> Term:
        return core(
            name, COMPONENT, CROSS_PAIRS, head_size=kv_channels, heads=num_attention_heads, inputs=(first, second), output=output
        )

    terms += [
        product("query_key", "query", "key", "scores"),
        *softmax(COMPONENT, CROSS_PAIRS, heads=num_attention_heads, value_size=kv_channels),
        product("scores_value", "scores", "value", "context"),
        Term("linear_proj", COMPONENT, query_size, hidden_size, inputs=("context",), bias=hidden_size * proj_bias),
    ]
    return [term.under("cross_attention.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return cross_attention(
        hidden_size=build.hidden_size,
        encoder_hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        num_query_groups=shape.key_value_heads,
        kv_channels=shape.head_size,
        fused=build.fused,
        qkv_bias=shape.add_qkv_bias or shape.add_bias_linear,
        key_bias=shape.add_key_bias,
        proj_bias=shape.add_proj_bias or shape.add_bias_linear,
        head_norm=bool(shape.qk_layernorm),
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    return [Cache("cross_keys_and_values", 2 * shape.key_value_heads * shape.head_size, ENCODER)]


PART = Part(name=COMPONENT, option="encoder_num_layers", terms=_terms, cache=_caches, colour={COMPONENT: "vermilion"})
