"""Vision towers: patch embedding, transformer blocks over the patches of one image, projector to the language width.

Qwen2-VL (arXiv:2409.12191), with windows and gated MLP (Qwen2.5-VL, arXiv:2502.13923) and deepstack (Qwen3-VL,
arXiv:2511.21631); SigLIP (arXiv:2303.15343) as in Gemma 3 (arXiv:2503.19786); CLIP as in LLaVA (arXiv:2310.03744); Llama 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.flops.elementwise import ACTIVATIONS, ADDITION, MULTIPLICATION, ROPE, SILU, Operations
from bridge.flops.statistics import PATCHES, Statistic
from bridge.flops.terms import Context, Kind, Term, core, elementwise, norm, softmax, table

COMPONENT = "vision_model"
CORE = "vision_attention"
PROJECTION = "vision_projection"

#: Everything that attends, a class token included.
PATCHES_AND_CLASS = Statistic("length_plus", "images", (1,))


def patch_embedding(
    *, patch_values: int, hidden_size: int, bias: bool, num_position_embeddings: int = 0, class_token: bool = False
) -> list[Term]:
    """The convolution whose stride is its kernel: one matmul per patch, on pixels, which need no gradient.

    Args:
        patch_values: channels x temporal_patch_size x patch_size^2.
        hidden_size: width of the tower.
        bias: a bias on the convolution.
        num_position_embeddings: rows of a learned position table, 0 for none.
        class_token: a learned token beside the patches, and a norm over all of them (CLIP, Llama 4).
    """
    terms = [
        Term("patch_embed", COMPONENT, patch_values, hidden_size, PATCHES, inputs=("pixels",), outputs=("patches",),
             kind=Kind.PATCH_EMBEDDING, bias=hidden_size * bias)
    ]  # fmt: skip
    if num_position_embeddings:
        terms.append(table("pos_embed", COMPONENT, num_position_embeddings, hidden_size, to=("patches",)))
        terms.append(elementwise("pos_embed", COMPONENT, hidden_size * ADDITION, "patches", rows=PATCHES))
    if class_token:
        rows = PATCHES_AND_CLASS
        terms.append(table("class_embedding", COMPONENT, 1, hidden_size, to=("patches",)))
        terms.append(norm("pre_layernorm", hidden_size, COMPONENT, source="patches", to="patches", bias=True, rows=rows))
    return [term.under("vision_model.") for term in terms]


def vision_layer(
    *,
    hidden_size: int,
    intermediate_size: int,
    gated: bool,
    window_patches: int = 0,
    class_token: bool = False,
    bias: bool = True,
    norm_bias: bool = True,
    heads: int = 1,
    rope: bool = False,
) -> list[Term]:
    """One block: bidirectional attention inside an image (or inside windows of it) and an MLP.

    Args:
        hidden_size: width of the tower.
        intermediate_size: inner width of the MLP.
        gated: SwiGLU.
        window_patches: patches of a window, 0 for the whole image.
        class_token: one more token than patches.
        bias: biases on the linear layers.
        norm_bias: LayerNorm instead of RMSNorm.
        heads: heads of the attention.
        rope: queries and keys are turned by the place of their patch.
    """
    rows = PATCHES_AND_CLASS if class_token else PATCHES
    if window_patches:
        context = Context("bidirectional_chunk", (window_patches,), "images")
    else:
        context = Context("bidirectional_plus", (1,), "images") if class_token else Context("bidirectional", (), "images")
    fc1 = (2 if gated else 1) * intermediate_size
    activation = SILU + MULTIPLICATION if gated else ACTIVATIONS["gelu"]

    def linear(name: str, k: int, n: int, source: str, to: str) -> Term:
        return Term(name, COMPONENT, k, n, rows, inputs=(source,), outputs=(to,), bias=n * bias)

    def product(name: str, first: str, second: str, output: str) -> Term:
        size = hidden_size // heads
        return core(name, CORE, context, head_size=size, heads=heads, inputs=(first, second), output=output)

    attention = [
        linear("linear_qkv", hidden_size, 3 * hidden_size, "normed", "qkv"),
        elementwise("rope", COMPONENT, 2 * hidden_size * rope * ROPE, "qkv", rows=rows),
        product("query_key", "qkv", "qkv", "scores"),
        *softmax(CORE, context, heads=heads, value_size=hidden_size // heads, tokens=rows),
        product("scores_value", "scores", "qkv", "context"),
        linear("linear_proj", hidden_size, hidden_size, "context", "patches"),
    ]
    return [
        norm("input_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias, rows=rows),
        *(term.under("self_attention.") for term in attention),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "patches", rows=rows),
        norm("pre_mlp_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias, rows=rows),
        linear("linear_fc1", hidden_size, fc1, "normed", "inner").under("mlp."),
        elementwise("activation", COMPONENT, intermediate_size * activation, "inner", rows=rows),
        linear("linear_fc2", intermediate_size, hidden_size, "inner", "patches").under("mlp."),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "patches", rows=rows),
    ]


def merger(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int, norm_size: int, norm_bias: bool) -> list[Term]:
    """Qwen's projector: merges spatial_merge_size^2 patches into one token, m -> m -> out with m = hidden x merge^2.

    Args:
        hidden_size: width of the tower.
        spatial_merge_size: patches merged along each side.
        out_hidden_size: width of the language model.
        norm_size: entries of its norm (hidden_size, or m where the norm comes after the merge).
        norm_bias: LayerNorm instead of RMSNorm.
    """
    merged = hidden_size * spatial_merge_size**2
    rows = merged_tokens(spatial_merge_size)
    return [
        norm(
            "norm",
            norm_size,
            PROJECTION,
            source="patches",
            to="merged",
            bias=norm_bias,
            rows=PATCHES if norm_size == hidden_size else rows,
        ),
        _projection("linear_fc1", merged, merged, rows, "merged", "inner", bias=True),
        elementwise("activation", PROJECTION, merged * ACTIVATIONS["gelu"], "inner", rows=rows),
        _projection("linear_fc2", merged, out_hidden_size, rows, "inner", "image_embeddings", bias=True),
    ]


def pooled_linear(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int) -> list[Term]:
    """Gemma 3's projector: average pooling over spatial_merge_size^2 patches, a norm, one matmul."""
    rows = merged_tokens(spatial_merge_size)
    return [
        elementwise(
            "pooling",
            PROJECTION,
            hidden_size * Operations(additions=spatial_merge_size**2 - 1, divisions=1),
            "patches",
            rows=rows,
        ),
        norm("mm_soft_emb_norm", hidden_size, PROJECTION, source="patches", to="pooled", rows=rows),
        _projection("mm_input_projection", hidden_size, out_hidden_size, rows, "pooled", "image_embeddings", bias=False),
    ]


def mlp_projector(*, hidden_size: int, out_hidden_size: int) -> list[Term]:
    """LLaVA-1.5's projector: a two-layer MLP on every patch."""
    return [
        _projection("linear_1", hidden_size, out_hidden_size, PATCHES, "patches", "inner", bias=True),
        elementwise("activation", PROJECTION, out_hidden_size * ACTIVATIONS["gelu"], "inner", rows=PATCHES),
        _projection("linear_2", out_hidden_size, out_hidden_size, PATCHES, "inner", "image_embeddings", bias=True),
    ]


def pixel_shuffle(
    *, intermediate_size: int, spatial_merge_size: int, projector_input_dim: int, projector_output_dim: int, out_hidden_size: int
) -> list[Term]:
    """Llama 4's adapter and projector: patches become channels, an MLP on them, one matmul to the language width.

    Args:
        intermediate_size: hidden_size x spatial_merge_size^2, what comes out of the shuffle.
        spatial_merge_size: patches merged along each side: 1 / pixel_shuffle_ratio.
        projector_input_dim, projector_output_dim: widths of the adapter's MLP.
        out_hidden_size: width of the language model.
    """
    rows = merged_tokens(spatial_merge_size)
    adapter = [
        Term(name, COMPONENT, k, n, rows, inputs=(source,), outputs=(to,))
        for name, k, n, source, to in (
            ("linear_fc1", intermediate_size, projector_input_dim, "patches", "inner"),
            ("linear_fc2", projector_input_dim, projector_output_dim, "inner", "shuffled"),
        )
    ]
    adapter += [
        elementwise("activation", COMPONENT, projector_input_dim * ACTIVATIONS["gelu"], "inner", rows=rows),
        elementwise("activation", COMPONENT, projector_output_dim * ACTIVATIONS["gelu"], "shuffled", rows=rows),
    ]
    linear = _projection("linear_1", projector_output_dim, out_hidden_size, rows, "shuffled", "image_embeddings", bias=False)
    return [*(term.under("vision_adapter.") for term in adapter), linear.under("merger.")]


def merged_tokens(spatial_merge_size: int) -> Statistic:
    """Tokens that the language model gets: each image's patches over spatial_merge_size^2."""
    return Statistic("quotient", "images", (spatial_merge_size**2,))


def _projection(name: str, k: int, n: int, rows: Statistic, source: str, to: str, *, bias: bool) -> Term:
    return Term(name, PROJECTION, k, n, rows, inputs=(source,), outputs=(to,), bias=n * bias)


def full_attention_layers(depth: int, window_patches: int, full_layers: Sequence[int]) -> list[bool]:
    """Whether each layer sees the whole image: all of them without windows."""
    return [not window_patches or i in full_layers for i in range(depth)]
