"""From a vision tower's patches to tokens of the language model: one projector for each family.

Qwen's merger (arXiv:2409.12191), Gemma 3's pooling (arXiv:2503.19786), the MLPs of LLaVA-1.5 (arXiv:2310.03744), of
LLaVA-OneVision (arXiv:2408.03326), of InternVL (arXiv:2404.16821) and of GLM-4.1V (arXiv:2507.01006), one matrix in PaliGemma
(arXiv:2407.07726) and in Idefics 3 (arXiv:2408.12637), Llama 4's pixel shuffle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.flops.components.vision_tower import COMPONENT, PATCHES_AND_CLASS
from bridge.flops.elementwise import ACTIVATIONS, MULTIPLICATION, Operations
from bridge.flops.rows import Projector
from bridge.flops.shapes import VisionShape
from bridge.flops.statistics import PATCHES, Statistic
from bridge.flops.terms import Term, elementwise, norm

PROJECTION = "vision_projection"


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
    normed = PATCHES if norm_size == hidden_size else rows
    return [
        norm("norm", norm_size, PROJECTION, source="patches", to="merged", bias=norm_bias, rows=normed),
        _projection("linear_fc1", merged, merged, rows, "merged", "inner", bias=True),
        elementwise("activation", PROJECTION, merged * ACTIVATIONS["gelu"], "inner", rows=rows),
        _projection("linear_fc2", merged, out_hidden_size, rows, "inner", "image_embeddings", bias=True),
    ]


def pooled_linear(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int) -> list[Term]:
    """Gemma 3's projector: average pooling over spatial_merge_size^2 patches, a norm, one matmul."""
    rows, pooled = merged_tokens(spatial_merge_size), Operations(additions=spatial_merge_size**2 - 1, divisions=1)
    return [
        elementwise("pooling", PROJECTION, hidden_size * pooled, "patches", rows=rows),
        norm("mm_soft_emb_norm", hidden_size, PROJECTION, source="patches", to="pooled", rows=rows),
        _projection("mm_input_projection", hidden_size, out_hidden_size, rows, "pooled", "image_embeddings", bias=False),
    ]


def mlp_projector(*, hidden_size: int, out_hidden_size: int, bias: bool = True) -> list[Term]:
    """LLaVA-1.5's projector: a two-layer MLP on every patch."""
    return _two_layers(hidden_size, out_hidden_size, PATCHES, "patches", bias=bias)


def _two_layers(k: int, n: int, rows: Statistic, source: str, *, bias: bool) -> list[Term]:
    return [
        _projection("linear_1", k, n, rows, source, "inner", bias=bias),
        elementwise("activation", PROJECTION, n * ACTIVATIONS["gelu"], "inner", rows=rows),
        _projection("linear_2", n, n, rows, "inner", "image_embeddings", bias=bias),
    ]


def linear(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int, bias: bool) -> list[Term]:
    """One matmul on spatial_merge_size^2 patches side by side: PaliGemma's projector, Idefics 3's connector."""
    merged, rows = hidden_size * spatial_merge_size**2, merged_tokens(spatial_merge_size)
    return [_projection("linear", merged, out_hidden_size, rows, "patches", "image_embeddings", bias=bias)]


def normed_mlp(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int) -> list[Term]:
    """InternVL's projector: a norm and a two-layer MLP on spatial_merge_size^2 patches side by side."""
    merged, rows = hidden_size * spatial_merge_size**2, merged_tokens(spatial_merge_size)
    return [
        norm("layer_norm", merged, PROJECTION, source="patches", to="merged", bias=True, rows=rows),
        *_two_layers(merged, out_hidden_size, rows, "merged", bias=True),
    ]


def gated_merger(*, hidden_size: int, spatial_merge_size: int, out_hidden_size: int, inner_size: int) -> list[Term]:
    """GLM-4.1V's projector: a convolution over spatial_merge_size^2 patches, a matmul with a norm, and a gated MLP."""
    merged, rows, out = hidden_size * spatial_merge_size**2, merged_tokens(spatial_merge_size), out_hidden_size
    gelu, gated = ACTIVATIONS["gelu"], ACTIVATIONS["silu"] + MULTIPLICATION
    return [
        _projection("downsample", merged, out, rows, "patches", "merged", bias=True),
        _projection("proj", out, out, rows, "merged", "projected", bias=False),
        norm("post_projection_norm", out, PROJECTION, source="projected", to="projected", bias=True, rows=rows),
        elementwise("activation", PROJECTION, out * gelu, "projected", rows=rows),
        _projection("linear_fc1", out, 2 * inner_size, rows, "projected", "inner", bias=False),
        elementwise("gate_product", PROJECTION, inner_size * gated, "inner", rows=rows),
        _projection("linear_fc2", inner_size, out, rows, "inner", "image_embeddings", bias=False),
    ]


def pixel_shuffle(
    *,
    intermediate_size: int,
    spatial_merge_size: int,
    projector_input_dim: int,
    projector_output_dim: int,
    vision_output_dim: int,
    out_hidden_size: int,
) -> list[Term]:
    """Llama 4's adapter and projector: patches become channels, an MLP on them, one matmul to the language width.

    Args:
        intermediate_size: hidden_size x spatial_merge_size^2, what comes out of the shuffle.
        spatial_merge_size: patches merged along each side: 1 / pixel_shuffle_ratio.
        projector_input_dim, projector_output_dim: widths of the adapter's MLP.
        vision_output_dim: what the projector reads; transformers runs only where it is the adapter's width.
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
    linear = _projection("linear_1", vision_output_dim, out_hidden_size, rows, "shuffled", "image_embeddings", bias=False)
    return [*(term.under("vision_adapter.") for term in adapter), linear.under("merger.")]


def merged_tokens(spatial_merge_size: int) -> Statistic:
    """Tokens that the language model gets: each image's patches over spatial_merge_size^2."""
    return Statistic("quotient", "images", (spatial_merge_size**2,))


def _projection(name: str, k: int, n: int, rows: Statistic, source: str, to: str, *, bias: bool) -> Term:
    return Term(name, PROJECTION, k, n, rows, inputs=(source,), outputs=(to,), bias=n * bias)


# ---- their rows ----------------------------------------------------------------------------------


def _sizes(vision: VisionShape) -> tuple[int, int]:
    """Width of the tower and of the language model."""
    assert vision.hidden_size is not None  # reading.read has checked them
    assert vision.out_hidden_size is not None
    return vision.hidden_size, vision.out_hidden_size


def _last_norm(vision: VisionShape, rows: Statistic) -> Term:
    hidden, _ = _sizes(vision)
    return norm("post_layernorm", hidden, COMPONENT, source="patches", to="patches", bias=not vision.gated, rows=rows)


def merger_of(vision: VisionShape, *, deep: bool = False) -> list[Term]:
    """A tower's merger. Those inside it (deepstack) normalize what they have merged, the last one before it merges."""
    hidden, out = _sizes(vision)
    return merger(
        hidden_size=hidden,
        spatial_merge_size=vision.spatial_merge_size,
        out_hidden_size=out,
        norm_size=hidden * vision.spatial_merge_size**2 if deep else hidden,
        norm_bias=not vision.gated,
    )


def _merging(vision: VisionShape, formula: Callable[..., list[Term]], **more: Any) -> list[Term]:
    """A projector that works on merged patches, in the place of a merger."""
    hidden, out = _sizes(vision)
    terms = formula(hidden_size=hidden, spatial_merge_size=vision.spatial_merge_size, out_hidden_size=out, **more)
    return [term.under("merger.") for term in terms]


def _pooled_linear(vision: VisionShape) -> list[Term]:
    return [_last_norm(vision, PATCHES), *_merging(vision, pooled_linear)]


def _mlp(vision: VisionShape) -> list[Term]:
    hidden, out = _sizes(vision)
    return [term.under("merger.") for term in mlp_projector(hidden_size=hidden, out_hidden_size=out)]


def _tile_mlp(vision: VisionShape) -> list[Term]:
    """The norm after the last layer is there, and the projector reads what came before it."""
    hidden, out = _sizes(vision)
    projector = mlp_projector(hidden_size=hidden, out_hidden_size=out, bias=vision.projector_bias)
    return [_last_norm(vision, PATCHES).changed(outputs=("unused",)), *(term.under("merger.") for term in projector)]


def _linear(vision: VisionShape) -> list[Term]:
    return [_last_norm(vision, PATCHES), *_merging(vision, linear, bias=vision.projector_bias)]


def _normed_mlp(vision: VisionShape) -> list[Term]:
    return _merging(vision, normed_mlp)


def _gated_merger(vision: VisionShape) -> list[Term]:
    return [_last_norm(vision, PATCHES), *_merging(vision, gated_merger, inner_size=vision.projector_input_dim or 0)]


def _pixel_shuffle(vision: VisionShape) -> list[Term]:
    _, out = _sizes(vision)
    projector = pixel_shuffle(
        intermediate_size=vision.mlp_size,
        spatial_merge_size=vision.spatial_merge_size,
        projector_input_dim=vision.projector_input_dim or 0,
        projector_output_dim=vision.projector_output_dim or 0,
        vision_output_dim=vision.vision_output_dim or vision.projector_output_dim or 0,
        out_hidden_size=out,
    )
    return [_last_norm(vision, PATCHES_AND_CLASS), *projector]


NONE = Projector(name="none", terms=lambda vision: [_last_norm(vision, PATCHES)])
MERGER = Projector(
    name="merger",
    terms=lambda vision: [term.under("merger.") for term in merger_of(vision)],
    rotary=True,
    trains=True,
    colour={PROJECTION: "grey"},
)
POOLED_LINEAR = Projector(name="pooled_linear", terms=_pooled_linear)
MLP = Projector(name="mlp", terms=_mlp)
TILE_MLP = Projector(name="tile_mlp", terms=_tile_mlp)
LINEAR = Projector(name="linear", terms=_linear)
NORMED_MLP = Projector(name="normed_mlp", terms=_normed_mlp)
GATED_MERGER = Projector(name="gated_merger", terms=_gated_merger, required=("projector_input_dim",), rotary=True)
PIXEL_SHUFFLE = Projector(
    name="pixel_shuffle", terms=_pixel_shuffle, required=("projector_input_dim", "projector_output_dim"), rotary=True
)
