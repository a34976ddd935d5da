"""DeepSeek sparse attention (DeepSeek-V3.2, arXiv:2512.02556): a light indexer chooses the top-k keys of every query.

The indexer reads detached activations: it trains only through its own loss, which compares its scores with the attention
of the main heads (the teacher term).  Without that loss it runs forward only.
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer, required
from bridge.flops.components import latent_attention
from bridge.flops.frequencies import everywhere
from bridge.flops.rows import Cache, Mixer
from bridge.flops.shapes import ModelShape
from bridge.flops.statistics import TOKENS, Statistic
from bridge.flops.terms import CAUSAL, Context, Pass, Role, Term, core, norm

COMPONENT = "indexer"


def indexer(
    *,
    hidden_size: int,
    q_input_size: int,
    num_heads: int,
    head_dim: int,
    selected: Context,
    trains: bool,
    sparse_loss: bool,
    teacher_heads: int,
    teacher_head_size: int,
    like_any_layer: bool = False,
) -> list[Term]:
    """The terms of one indexer.

    Args:
        hidden_size: width of the residual stream.
        q_input_size: what its queries are projected from: q_lora_rank, or hidden_size.
        num_heads, head_dim: its heads.
        selected: the context of the top-k keys.
        trains: the indexer has a loss (dsa_indexer_loss_coeff > 0).
        sparse_loss: the loss looks at the selected keys only (dsa_indexer_use_sparse_loss).
        like_any_layer: MaxText's price: nothing for sequences no longer than top-k, else every pass of an ordinary layer.
        teacher_heads, teacher_head_size: the main attention's scores, computed once more as the target of the loss.
    """
    topk = selected.sizes[0]
    rows = Statistic("length_over", sizes=(topk,)) if like_any_layer else TOKENS
    source = "normed" if like_any_layer else "detached"
    dense = Context("indexer", (topk,))
    learning = Pass.TRAINING if trains or like_any_layer else Pass.FORWARD
    loss_context = selected if sparse_loss else dense

    # A score is a dot product of head_dim and a weight per head: head_dim + 1 multiply-accumulates.
    def scores(name: str, context: Context, allowed: Pass) -> Term:
        return core(name, COMPONENT, context, head_size=head_dim + 1, heads=num_heads, inputs=("index_query", "index_key"),
                    output="index_scores", allowed=allowed)  # fmt: skip

    def projection(name: str, k: int, n: int, output: str) -> Term:
        return Term(name, COMPONENT, k, n, rows, inputs=(source,), outputs=(output,), allowed=learning)

    terms = [
        projection("linear_wq_b", q_input_size, num_heads * head_dim, "index_query"),
        projection("linear_wk", hidden_size, head_dim, "index_key"),
        norm("k_norm", head_dim, COMPONENT, source="index_key", to="index_key", bias=True, rows=rows),
        projection("linear_weights_proj", hidden_size, num_heads, "index_query"),
        scores("index_scores", dense, Pass.TRAINING if like_any_layer else Pass.FORWARD),
    ]
    if trains and not like_any_layer:
        terms += [
            scores("index_scores_gradient", loss_context, Pass.BACKWARD),
            core("teacher_scores", COMPONENT, loss_context, head_size=teacher_head_size, heads=teacher_heads,
                 inputs=("detached", "detached"), output="teacher", allowed=Pass.FORWARD).marked(Role.TRAINING_ONLY),
        ]  # fmt: skip
    return [term.under("self_attention.core_attention.indexer.") for term in terms]


# ---- its row -------------------------------------------------------------------------------------


def chooses(shape: ModelShape, number: int, in_mtp: bool) -> int:
    """1 if a layer's indexer chooses keys, 0 if the layer reuses the last choice."""
    if shape.dsa_indexer_layers is not None and not in_mtp:
        return int(bool(shape.dsa_indexer_layers[number - 1]))
    position = max(number - max(shape.dsa_indexer_skip_topk_offset, 1), 0)
    return int(position % shape.dsa_indexer_topk_freq == 0)


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    heads, size, topk = (required(shape, f"dsa_indexer_{name}") for name in ("n_heads", "head_dim", "topk"))
    selected = Context("topk", (topk,))
    plain = build.convention.indexer_like_any_layer
    terms = latent_attention.terms(build, layer, context=selected, absorbed=not plain)
    if layer.form:
        terms += indexer(
            hidden_size=build.hidden_size,
            q_input_size=shape.q_lora_rank or build.hidden_size,
            num_heads=heads,
            head_dim=size,
            selected=selected,
            trains=(shape.dsa_indexer_loss_coeff or 0) > 0,
            sparse_loss=shape.dsa_indexer_use_sparse_loss,
            teacher_heads=build.heads,
            like_any_layer=plain,
            teacher_head_size=shape.kv_lora_rank + shape.qk_pos_emb_head_dim,
        )
    return terms


def _caches(shape: ModelShape, layer: Layer) -> list[Cache]:
    kept = latent_attention.latents(shape, CAUSAL, Context("topk", (shape.dsa_indexer_topk or 0,)))
    return [kept, Cache("indexer_keys", shape.dsa_indexer_head_dim or 0, CAUSAL)] if layer.form else [kept]


_BY_MASK = (
    "sparse attention: its core is counted on the latents, as kernels for chosen keys attend; transformers' own code attends "
    "with whole keys and values to all of them, under a mask"
)

MIXER = Mixer(
    name="dsa",
    symbol="D",
    required=("num_attention_heads",),
    variant=("dsa",),
    layers=everywhere,
    form=chooses,
    terms=_terms,
    cache=_caches,
    executed=lambda framework: _BY_MASK if framework.sparse_by_mask else "",
    colour={COMPONENT: "vermilion"},
)
