"""The byte-latent transformer (Pagnoni et al., arXiv:2412.09871): bytes outside, patches of bytes inside.

A local encoder over bytes, cross attention from each patch to its own bytes, a latent transformer over the patches, cross
attention from each byte back to its patch, a local decoder over bytes; beside them a small language model over bytes whose
entropy says where patches begin.  ``hidden`` is the stream of bytes, ``patches`` the stream of patches.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from bridge.flops.components.mlp import mlp
from bridge.flops.components.self_attention import self_attention
from bridge.flops.statistics import TOKENS, Over, Statistic
from bridge.flops.terms import Context, Pass, Rows, Term, core, join, norm, table

#: Tokens of the latent transformer.
BYTE_PATCHES = Statistic("length", "byte_patches")
#: Bytes x patches of a sequence: what a dense kernel computes of a cross attention.
CROSS_PRODUCTS = Statistic("length", "cross_products")
CROSS_ATTENTION = "cross_attention"
LATENT = "latent_transformer"
#: The frozen language model that finds the patches.
ENTROPY_MODEL = "entropy_model"


def layer(
    *,
    hidden_size: int,
    ffn_hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    context: Context,
    component: str,
    stream: str = "hidden",
) -> list[Term]:
    """One transformer layer, gated MLP and RMSNorm, on the bytes or on the patches.

    Args:
        hidden_size, ffn_hidden_size, num_attention_heads, num_query_groups: its sizes.
        context: which positions one sees, over ``sequences`` (bytes) or ``byte_patches``.
        component: line of the breakdown.
        stream: the residual stream it adds to.
    """
    attention = self_attention(
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_query_groups=num_query_groups,
        kv_channels=hidden_size // num_attention_heads,
        context=context,
        fused=False,
    )
    channel = mlp(hidden_size=hidden_size, ffn_hidden_size=ffn_hidden_size, gated=True, fused=False)
    terms = [
        norm("input_layernorm", hidden_size, component, source="hidden", to="normed"),
        *attention,
        norm("pre_mlp_layernorm", hidden_size, component, source="hidden", to="normed"),
        *(term.under("mlp.") for term in channel),
    ]
    return [_moved(term, component, stream, context.over) for term in terms]


def _moved(term: Term, component: str, stream: str, over: Over) -> Term:
    """A term of an ordinary layer, put on another stream and summed over other lengths."""

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(stream if name == "hidden" else name for name in names)

    rows: Rows = replace(term.rows, over=over)
    return replace(term, component=component, rows=rows, inputs=renamed(term.inputs), outputs=renamed(term.outputs))


def pooled_patches(*, hidden_size: int, multiplicity: int, allowed: Pass, tied: str = "") -> list[Term]:
    """The first guess of a patch: the largest entries of its bytes, projected to ``multiplicity`` vectors of hidden_size.

    Args:
        hidden_size: width of the local encoder.
        multiplicity: vectors that stand for one patch.
        allowed: forward only where a later layer starts the patches anew.
        tied: path of the projection where its parameters count already.
    """
    return [
        join("hidden", to="pooled"),
        Term("patch_embedding_projection", CROSS_ATTENTION, hidden_size, hidden_size * multiplicity, BYTE_PATCHES,
             inputs=("pooled",), outputs=("patch_query",), tied=tied, allowed=allowed),
    ]  # fmt: skip


def cross_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    multiplicity: int,
    from_patches: bool,
    dense: bool,
    source: str,
    keys: str,
    to: str,
    allowed: Pass = Pass.TRAINING,
) -> list[Term]:
    """Patches that attend to their bytes (encoder), or bytes that attend to their patch (decoder).

    Either way a byte meets the ``multiplicity`` vectors of one patch: multiplicity x bytes pairs.

    Args:
        hidden_size, num_attention_heads, num_query_groups: of the local model.
        multiplicity: vectors that stand for one patch.
        from_patches: the queries are the patches.
        dense: every byte is compared with every patch, and masked afterwards.
        source: the value from which queries are projected and to which the result is added.
        keys: the value from which keys and values are projected.
        to: the value that is written.
        allowed: FORWARD alone for results that are not used.
    """
    head_size = hidden_size // num_attention_heads
    key_width = num_query_groups * head_size
    patches, one = (BYTE_PATCHES, Fraction(multiplicity)), (TOKENS, Fraction(1))
    (asks, ask_times), (told, told_times) = (patches, one) if from_patches else (one, patches)

    def linear(name: str, n: int, rows: Statistic, times: Fraction, value: str, output: str) -> Term:
        return Term(name, CROSS_ATTENTION, hidden_size, n, rows, times, (value,), (output,), allowed=allowed)

    def product(name: str, first: str, second: str, output: str) -> Term:
        return core(name, CROSS_ATTENTION, CROSS_PRODUCTS if dense else TOKENS, head_size=head_size, heads=num_attention_heads,
                    inputs=(first, second), output=output, times=Fraction(multiplicity), allowed=allowed)  # fmt: skip

    return [
        replace(norm("q_norm", hidden_size, CROSS_ATTENTION, source=source, to="cross_asking"), allowed=allowed),
        linear("q_proj", hidden_size, asks, ask_times, "cross_asking", "query"),
        replace(norm("k_norm", hidden_size, CROSS_ATTENTION, source=keys, to="cross_told"), allowed=allowed),
        linear("k_proj", key_width, told, told_times, "cross_told", "key"),
        linear("v_proj", key_width, told, told_times, "cross_told", "value"),
        product("query_key", "query", "key", "scores"),
        product("scores_value", "scores", "value", "context"),
        linear("o_proj", hidden_size, asks, ask_times, "context", "cross_output"),
        join(source, "cross_output", to=to),
    ]


def byte_embedding(*, vocab_size: int, hidden_size: int, hash_tables: int, hash_vocab_size: int) -> list[Term]:
    """Bytes, and hashes of the byte n-grams that end there: look-ups, which cost nothing.

    Args:
        vocab_size: bytes and special symbols.
        hidden_size: width of the local encoder.
        hash_tables: n-gram sizes x hash functions.
        hash_vocab_size: rows of each table.
    """
    return [
        table("embed_tokens", "embedding", vocab_size, hidden_size, to=("hidden",)),
        table("encoder_hash_tok_embedding", "embedding", hash_tables * hash_vocab_size, hidden_size, to=("hidden",)),
    ]


def projection(name: str, k: int, n: int, source: str, to: str, component: str) -> Term:
    """A matmul between the widths of the local and of the latent transformer, once per patch."""
    return Term(name, component, k, n, BYTE_PATCHES, inputs=(source,), outputs=(to,))


def head(*, hidden_size: int, vocab_size: int, component: str) -> list[Term]:
    """The last norm and the projection of every byte to the vocabulary."""
    return [
        norm("norm", hidden_size, component, source="hidden", to="normed"),
        Term("lm_head", component, hidden_size, vocab_size, inputs=("normed",), outputs=("logits",)),
    ]
