"""A Qwen-style vision tower: patch embedding, transformer blocks over the patches of one image, merger to the language width.

Qwen2-VL (arXiv:2409.12191); windows and gated MLP: Qwen2.5-VL (arXiv:2502.13923); deepstack: Qwen3-VL (arXiv:2511.21631).
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.flops.statistics import PATCHES, Statistic
from bridge.flops.terms import Context, Kind, Term, core, norm, table

COMPONENT = "vision_model"
PROJECTION = "vision_projection"
FULL = Context("bidirectional", over="images")


def patch_embedding(*, patch_values: int, hidden_size: int, bias: bool, num_position_embeddings: int = 0) -> list[Term]:
    """The convolution whose stride is its kernel: one matmul per patch, on pixels, which need no gradient.

    Args:
        patch_values: channels x temporal_patch_size x patch_size^2.
        hidden_size: width of the tower.
        bias: a bias on the convolution.
        num_position_embeddings: rows of a learned position table, 0 for none.
    """
    terms = [
        Term("patch_embed", COMPONENT, patch_values, hidden_size, PATCHES, inputs=("pixels",), outputs=("patches",),
             kind=Kind.PATCH_EMBEDDING, bias=hidden_size * bias)
    ]  # fmt: skip
    if num_position_embeddings:
        terms.append(table("pos_embed", COMPONENT, num_position_embeddings, hidden_size, to=("patches",)))
    return [term.under("vision_model.") for term in terms]


def vision_layer(
    *, hidden_size: int, intermediate_size: int, gated: bool, window_patches: int, bias: bool, norm_bias: bool
) -> list[Term]:
    """One block: bidirectional attention inside an image (or inside windows of it) and an MLP.

    Args:
        hidden_size: width of the tower.
        intermediate_size: inner width of the MLP.
        gated: SwiGLU.
        window_patches: patches of a window, 0 for the whole image.
        bias: biases on the linear layers.
        norm_bias: LayerNorm instead of RMSNorm.
    """
    context = Context("bidirectional_chunk", (window_patches,), "images") if window_patches else FULL
    fc1 = (2 if gated else 1) * intermediate_size

    def linear(name: str, k: int, n: int, source: str, to: str) -> Term:
        return Term(name, COMPONENT, k, n, PATCHES, inputs=(source,), outputs=(to,), bias=n * bias)

    def product(name: str, first: str, second: str, output: str) -> Term:
        # Heads x head width is the width, however it is split.
        return core(name, COMPONENT, context, head_size=hidden_size, heads=1, inputs=(first, second), output=output)

    attention = [
        linear("linear_qkv", hidden_size, 3 * hidden_size, "normed", "qkv"),
        product("query_key", "qkv", "qkv", "scores"),
        product("scores_value", "scores", "qkv", "context"),
        linear("linear_proj", hidden_size, hidden_size, "context", "patches"),
    ]
    return [
        norm("input_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias),
        *(term.under("self_attention.") for term in attention),
        norm("pre_mlp_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias),
        linear("linear_fc1", hidden_size, fc1, "normed", "inner").under("mlp."),
        linear("linear_fc2", intermediate_size, hidden_size, "inner", "patches").under("mlp."),
    ]


def merger(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int, norm_size: int, norm_bias: bool) -> list[Term]:
    """The projector: merges spatial_merge_size^2 patches into one token, m -> m -> out with m = hidden x merge^2.

    Args:
        hidden_size: width of the tower.
        spatial_merge_size: patches merged along each side.
        out_hidden_size: width of the language model.
        norm_size: entries of its norm (hidden_size, or m where the norm comes after the merge).
        norm_bias: LayerNorm instead of RMSNorm.
    """
    merged = hidden_size * spatial_merge_size**2
    rows = Statistic("quotient", "images", (spatial_merge_size**2,))
    return [
        norm("norm", norm_size, PROJECTION, source="patches", to="merged", bias=norm_bias),
        Term("linear_fc1", PROJECTION, merged, merged, rows, inputs=("merged",), outputs=("inner",), bias=merged),
        Term("linear_fc2", PROJECTION, merged, out_hidden_size, rows, inputs=("inner",), outputs=("image_embeddings",),
             bias=out_hidden_size),
    ]  # fmt: skip


def full_attention_layers(depth: int, window_patches: int, full_layers: Sequence[int]) -> list[bool]:
    """Whether each layer sees the whole image: all of them without windows."""
    return [not window_patches or i in full_layers for i in range(depth)]
