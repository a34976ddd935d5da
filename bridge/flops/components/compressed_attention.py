"""DeepSeek-V4's hybrid attention: a sliding window beside compressed keys, of which a light indexer may choose the best.

Ratio 0 is the window alone, 128 attends to all compressed keys, 4 to the indexer's top-k of them.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer, required
from bridge.flops.components.self_attention import COMPONENT, CORE
from bridge.flops.elementwise import Operations
from bridge.flops.frequencies import everywhere
from bridge.flops.rows import Cache, Mixer
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.statistics import TOKENS
from bridge.flops.terms import Context, Kind, Rows, Term, core, elementwise, join, norm, softmax

#: The finest compression: its blocks overlap, so that its compressor projects twice as much, and it needs an indexer.
INDEXED_RATIO = 4
RATIOS = (0, INDEXED_RATIO, 128)


def compressed_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    q_lora_rank: int,
    query_head_dim: int,
    v_head_dim: int,
    o_groups: int,
    o_lora_rank: int,
    window: int,
    nominal_window: bool,
    ratio: int,
    indexer_heads: int,
    indexer_head_dim: int,
    indexer_topk: int,
    head_reduction: bool = False,
) -> list[Term]:
    """The terms of one block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_attention_heads: query heads; they share one key/value head.
        q_lora_rank: rank of the query compression.
        query_head_dim, v_head_dim: width of a query and of the shared key/value head.
        o_groups, o_lora_rank: the output projection goes through o_groups low-rank maps.
        window: tokens of the sliding window.
        nominal_window: every token is priced at ``window`` keys, also the first ones.
        ratio: tokens that one compressed key stands for: 0 (none), 4 or 128.
        indexer_heads, indexer_head_dim, indexer_topk: the indexer of ratio 4.
        head_reduction: the weighted sum of the indexer's heads is one more multiply-accumulate of each score.
    """
    heads = num_attention_heads
    terms = [
        Term("linear_q_down_proj", COMPONENT, hidden_size, q_lora_rank, inputs=("normed",), outputs=("q_latent",)),
        norm("q_layernorm", q_lora_rank, COMPONENT, source="q_latent", to="q_latent", kind=Kind.LATENT_NORM),
        Term("linear_q_up_proj", COMPONENT, q_lora_rank, heads * query_head_dim, inputs=("q_latent",), outputs=("query",)),
        Term("linear_kv_proj", COMPONENT, hidden_size, v_head_dim, inputs=("normed",), outputs=("key_value",)),
        norm("kv_layernorm", v_head_dim, COMPONENT, source="key_value", to="key_value", kind=Kind.LATENT_NORM),
    ]
    rows: Rows = TOKENS if nominal_window else Context("prefix_window", (window,))
    times = Fraction(window) if nominal_window else Fraction(1)
    # Megatron prices both halves of a core at the width of a value head.
    score_size = v_head_dim if nominal_window else query_head_dim
    attend = [("window", rows, times, "key_value")]
    if ratio:
        overlap = 2 if ratio == INDEXED_RATIO else 1
        width = 2 * overlap * v_head_dim
        terms.append(Term("compressor", COMPONENT, hidden_size, width, inputs=("normed",), outputs=("compressed",)))
        context = Context("compressed", (ratio,))
        if ratio == INDEXED_RATIO:
            terms += _indexer(hidden_size, q_lora_rank, indexer_heads, indexer_head_dim, ratio, head_reduction)
            context = Context("compressed_topk", (ratio, indexer_topk))
        attend.append(("compressed", context, Fraction(1), "compressed"))
    outputs = []
    # One softmax runs over all keys: only the first part has its fixed costs.
    terms += softmax(CORE, Context("window", (window,)), heads=heads, value_size=v_head_dim, on="query")
    for name, over, factor, keys in attend:
        scores, value = f"{name}_scores", f"{name}_context"
        terms += [
            core(f"{name}_query_key", CORE, over, head_size=score_size, heads=heads, inputs=("query", keys), output=scores,
                 times=factor),
            core(f"{name}_scores_value", CORE, over, head_size=v_head_dim, heads=heads, inputs=(scores, keys), output=value,
                 times=factor),
        ]  # fmt: skip
        if name != "window":
            more = Operations(additions=heads, divisions=2 * heads, exponentiations=heads)
            terms.append(elementwise(f"{name}_softmax", CORE, more, scores, rows=over))
        outputs.append(value)
    terms += [
        join(*outputs, to="context"),
        Term("linear_o_down_proj", COMPONENT, heads * v_head_dim // o_groups, o_lora_rank, times=Fraction(o_groups),
             inputs=("context",), outputs=("o_latent",), copies=o_groups, active_copies=o_groups),
        Term("linear_proj", COMPONENT, o_groups * o_lora_rank, hidden_size, inputs=("o_latent",)),
    ]  # fmt: skip
    return [term.under("self_attention.") for term in terms]


def _indexer(hidden_size: int, q_lora_rank: int, heads: int, head_dim: int, ratio: int, head_reduction: bool) -> list[Term]:
    terms = [
        Term("compressor", "indexer", hidden_size, 4 * head_dim, inputs=("normed",), outputs=("index_key",)),
        Term("linear_wq_b", "indexer", q_lora_rank, heads * head_dim, inputs=("q_latent",), outputs=("index_query",)),
        Term("linear_weights_proj", "indexer", hidden_size, heads, inputs=("normed",), outputs=("index_query",)),
        core("index_scores", "indexer", Context("compressed_indexer", (ratio,)), head_size=head_dim + head_reduction, heads=heads,
             inputs=("index_query", "index_key"), output="index_scores"),
    ]  # fmt: skip
    return [term.under("indexer.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def _ratio(shape: ModelShape, number: int, in_mtp: bool) -> int:
    """What one compressed key of a layer stands for, as ``csa_compress_ratios`` says."""
    before, count = shape.num_layers or 0, (shape.num_layers or 0) + (shape.mtp_num_layers or 0)
    ratios = shape.csa_compress_ratios
    if ratios is None:
        raise ConfigError("model.csa_compress_ratios is missing: give one of 0, 4, 128 for each layer, MTP layers included")
    if len(ratios) != count:
        raise ConfigError(
            f"model.csa_compress_ratios has {len(ratios)} entries, but num_layers + mtp_num_layers is {count}: give one per layer"
        )
    ratio = ratios[number - 1 + before * in_mtp]
    if ratio not in RATIOS:
        raise ConfigError(f"model.csa_compress_ratios has the ratio {ratio!r}: it must be one of {RATIOS}")
    return int(ratio)


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape, indexed = build.shape, layer.form == INDEXED_RATIO
    heads, size, topk = (required(shape, f"dsa_indexer_{name}") if indexed else 0 for name in ("n_heads", "head_dim", "topk"))
    return compressed_attention(
        hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        q_lora_rank=required(shape, "q_lora_rank"),
        query_head_dim=shape.qk_head_dim + shape.qk_pos_emb_head_dim,
        v_head_dim=shape.v_head_dim,
        o_groups=required(shape, "o_groups"),
        o_lora_rank=required(shape, "o_lora_rank"),
        window=shape.csa_window_size,
        nominal_window=build.convention.nominal_sparse_window,
        ratio=layer.form,
        indexer_heads=heads,
        indexer_head_dim=size,
        indexer_topk=topk,
        head_reduction=build.convention.compressed_head_reduction,
    )


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    caches, ratio = [Cache("keys_and_values", shape.v_head_dim, Context("window", (shape.csa_window_size,)))], layer.form
    if ratio:
        kept, read = Context("compressed", (ratio,)), None
        if ratio == INDEXED_RATIO:
            read = Context("compressed_topk", (ratio, shape.dsa_indexer_topk or 0))
            caches.append(Cache("indexer_keys", shape.dsa_indexer_head_dim or 0, kept))
        caches.append(Cache("compressed_keys", shape.v_head_dim, kept, read))
    return caches


MIXER = Mixer(name="dsv4", variant=("dsv4_hybrid",), layers=everywhere, form=_ratio, terms=_terms, cache=_caches)
