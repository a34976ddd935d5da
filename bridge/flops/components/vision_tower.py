"""Vision towers: patch embedding and transformer blocks over the patches of one image; see ``vision_projector`` for what follows.

Qwen2-VL (arXiv:2409.12191), with windows and gated MLP (Qwen2.5-VL, arXiv:2502.13923) and deepstack (Qwen3-VL,
arXiv:2511.21631); SigLIP (arXiv:2303.15343) as in Gemma 3 (arXiv:2503.19786); CLIP as in LLaVA (arXiv:2310.03744); Llama 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.flops.elementwise import ACTIVATIONS, ADDITION, MULTIPLICATION, ROPE, Operations
from bridge.flops.rows import Part
from bridge.flops.statistics import PATCHES, Statistic
from bridge.flops.terms import Context, Kind, Term, core, elementwise, norm, softmax, table

COMPONENT = "vision_model"
CORE = "vision_attention"

GELU = ACTIVATIONS["gelu"]
#: Everything that attends, a class token included.
PATCHES_AND_CLASS = Statistic("length_plus", "images", (1,))


def patch_embedding(
    *,
    patch_values: int,
    hidden_size: int,
    bias: bool,
    num_position_embeddings: int = 0,
    class_token: bool = False,
    normed: bool = True,
    patch_norm: bool = False,
) -> list[Term]:
    """The convolution whose stride is its kernel: one matmul per patch, on pixels, which need no gradient.

    Args:
        patch_values: channels x temporal_patch_size x patch_size^2.
        hidden_size: width of the tower.
        bias: a bias on the convolution.
        num_position_embeddings: rows of a learned position table, 0 for none.
        class_token: a learned token beside the patches.
        normed: with it, a norm over all of them (CLIP, Llama 4).
        patch_norm: RMSNorm of patches that have no positions yet.
    """
    convolution = Term("patch_embed", COMPONENT, patch_values, hidden_size, PATCHES, inputs=("pixels",), outputs=("patches",))
    terms = [convolution.changed(kind=Kind.PATCH_EMBEDDING, bias=hidden_size * bias)]
    if patch_norm:
        terms.append(norm("patch_norm", hidden_size, COMPONENT, source="patches", to="patches", rows=PATCHES))
    if num_position_embeddings:
        terms.append(table("pos_embed", COMPONENT, num_position_embeddings, hidden_size, to=("patches",)))
        terms.append(elementwise("pos_embed", COMPONENT, hidden_size * ADDITION, "patches", rows=PATCHES))
    if class_token:
        terms.append(table("class_embedding", COMPONENT, 1, hidden_size, to=("patches",)))
    if class_token and normed:
        rows = PATCHES_AND_CLASS
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
    qkv_bias: bool = True,
    norm_bias: bool = True,
    layer_scale: bool = False,
    heads: int = 1,
    rope: bool = False,
    activation: Operations = GELU,
) -> list[Term]:
    """One block: bidirectional attention inside an image (or inside windows of it) and an MLP.

    Args:
        hidden_size: width of the tower.
        intermediate_size: inner width of the MLP.
        gated: SwiGLU.
        window_patches: patches of a window, 0 for the whole image.
        class_token: one more token than patches.
        bias: biases on the linear layers behind the attention.
        qkv_bias: on queries, keys and values.
        norm_bias: LayerNorm instead of RMSNorm.
        layer_scale: a learned scale of each channel on what the attention and the MLP add.
        heads: heads of the attention.
        rope: queries and keys are rotated by the position of their patch.
        activation: the operations of the activation function on one number.
    """
    rows = PATCHES_AND_CLASS if class_token else PATCHES
    if window_patches:
        context = Context("bidirectional_chunk", (window_patches,), "images")
    else:
        context = Context("bidirectional_plus", (1,), "images") if class_token else Context("bidirectional", (), "images")
    fc1 = (2 if gated else 1) * intermediate_size
    activated = activation + MULTIPLICATION if gated else activation

    def linear(name: str, k: int, n: int, source: str, to: str) -> Term:
        return Term(name, COMPONENT, k, n, rows, inputs=(source,), outputs=(to,), bias=n * bias)

    def product(name: str, first: str, second: str, output: str) -> Term:
        size = hidden_size // heads
        return core(name, CORE, context, head_size=size, heads=heads, inputs=(first, second), output=output)

    attention = [
        linear("linear_qkv", hidden_size, 3 * hidden_size, "normed", "qkv").changed(bias=3 * hidden_size * qkv_bias),
        elementwise("rope", COMPONENT, 2 * hidden_size * rope * ROPE, "qkv", rows=rows),
        product("query_key", "qkv", "qkv", "scores"),
        *softmax(CORE, context, heads=heads, value_size=hidden_size // heads, tokens=rows),
        product("scores_value", "scores", "qkv", "context"),
        linear("linear_proj", hidden_size, hidden_size, "context", "patches"),
    ]

    def scale(name: str) -> list[Term]:
        learned = table(name, COMPONENT, hidden_size, source="patches", to=("patches",))
        return [learned, elementwise(name, COMPONENT, hidden_size * MULTIPLICATION, "patches", rows=rows)] * layer_scale

    return [
        norm("input_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias, rows=rows),
        *(term.under("self_attention.") for term in attention),
        *scale("attention_scale"),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "patches", rows=rows),
        norm("pre_mlp_layernorm", hidden_size, COMPONENT, source="patches", to="normed", bias=norm_bias, rows=rows),
        linear("linear_fc1", hidden_size, fc1, "normed", "inner").under("mlp."),
        elementwise("activation", COMPONENT, intermediate_size * activated, "inner", rows=rows),
        linear("linear_fc2", intermediate_size, hidden_size, "inner", "patches").under("mlp."),
        *scale("mlp_scale"),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "patches", rows=rows),
    ]


def full_attention_layers(depth: int, window_patches: int, full_layers: Sequence[int]) -> list[bool]:
    """Whether each layer sees the whole image: all of them without windows."""
    return [not window_patches or i in full_layers for i in range(depth)]


PART = Part(name=COMPONENT, option="vision_config", trains=True, colour={COMPONENT: "teal", CORE: "olive"})
