"""From a model's shape to its terms: layer kind -> component, layer by layer.  No formulas.

A new architecture is a component file, a row in ``MIXERS`` or ``CHANNELS``, a recipe and an oracle test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bridge.flops.components import diffusion, multi_token_prediction
from bridge.flops.components.audio_encoder import POSITIONS, STRIDE, frontend, projector
from bridge.flops.components.compressed_attention import INDEXED_RATIO, compressed_attention
from bridge.flops.components.cross_attention import ENCODER_TOKENS, cross_attention
from bridge.flops.components.gated_delta_net import gated_delta_net
from bridge.flops.components.hyper_connections import hyper_connections
from bridge.flops.components.kimi_delta_attention import kimi_delta_attention
from bridge.flops.components.latent_attention import latent_attention
from bridge.flops.components.mamba import mamba
from bridge.flops.components.mlp import mlp
from bridge.flops.components.moe import moe
from bridge.flops.components.output_layer import bert_lm_head, embedding, output_layer
from bridge.flops.components.per_layer_embeddings import per_layer_input, per_layer_projection
from bridge.flops.components.self_attention import self_attention
from bridge.flops.components.sparse_attention import indexer
from bridge.flops.components.vision_tower import (
    PATCHES_AND_CLASS,
    full_attention_layers,
    merger,
    mlp_projector,
    patch_embedding,
    pixel_shuffle,
    pooled_linear,
    vision_layer,
)
from bridge.flops.conventions import Convention
from bridge.flops.elementwise import ACTIVATIONS, ADDITION, NOTHING, Operations
from bridge.flops.frameworks import Framework
from bridge.flops.layer_pattern import Layer, decoder_layers, encoder_layers, mtp_depths
from bridge.flops.reading import Model
from bridge.flops.shapes import AudioShape, ConfigError, DiffusionShape, ModelShape, VisionShape
from bridge.flops.statistics import PATCHES, Statistic
from bridge.flops.terms import Context, Kind, Term, elementwise, join, norm, onto, table

#: Kinds of positions that turn queries and keys.
ROTARY = ("rope", "mrope", "yarn")
#: Taps of Mamba's convolution: megatron-core's MambaMixer, argument d_conv.
MAMBA_CONV_KERNEL = 4


@dataclass(frozen=True)
class Build:
    """What a component may depend on: the shape, the convention's and the framework's switches, fused layers or not."""

    shape: ModelShape
    convention: Convention
    framework: Framework
    fused: bool

    @property
    def hidden_size(self) -> int:
        assert self.shape.hidden_size is not None  # model_shape.read has checked it
        return self.shape.hidden_size

    @property
    def heads(self) -> int:
        assert self.shape.num_attention_heads is not None
        return self.shape.num_attention_heads

    @property
    def norm_bias(self) -> bool:
        return self.shape.normalization == "LayerNorm"

    @property
    def activation(self) -> Operations:
        """What the activation does to one number; nothing where it is unknown, which the operation ledger reports."""
        return ACTIVATIONS.get(self.shape.activation, NOTHING)

    def rotated(self, layer: Layer, head_size: int) -> int:
        """Channels of a head that RoPE turns."""
        turns = self.shape.position_embedding_type in ROTARY and layer.rotates
        return int(head_size * self.shape.rotary_percent) if turns else 0


def root_terms(model: Model, convention: Convention, framework: Framework) -> list[Term]:
    """The terms of whatever kind of model it is, forward."""
    if model.diffusion is not None:
        return diffusion_terms(model.diffusion)
    if model.language is not None:
        return model_terms(model.language, model.vision, model.audio, convention, framework, fused=framework.fused)
    return vision_terms(model.vision, convention) if model.vision is not None else []


def model_terms(
    shape: ModelShape,
    vision: VisionShape | None,
    audio: AudioShape | None,
    convention: Convention,
    framework: Framework,
    *,
    fused: bool,
) -> list[Term]:
    """All terms of a model in the order of its forward pass, with megatron-core's module paths."""
    build = Build(shape, convention, framework, fused)
    terms: list[Term] = []
    if vision is not None:
        terms += vision_terms(vision, convention)
    if audio is not None:
        terms += audio_terms(build, audio)
    assert shape.vocab_size is not None
    vocabulary = shape.built_vocab_size if convention.padded_vocabulary else shape.vocab_size
    hidden = build.hidden_size
    positions = shape.max_position_embeddings or 0 if shape.position_embedding_type == "learned_absolute" else 0
    terms += embedding(
        vocab_size=vocabulary,
        hidden_size=hidden,
        max_position_embeddings=positions,
        num_tokentypes=shape.num_tokentypes,
        normed=shape.embedding_layernorm,
    )
    if shape.encoder_num_layers and audio is None:
        terms += encoder_terms(build)
    layers = decoder_layers(shape)
    if shape.hidden_size_per_layer_input:
        terms += per_layer_input(
            hidden_size=hidden,
            num_layers=len(layers),
            per_layer_size=shape.hidden_size_per_layer_input,
            vocab_size=shape.vocab_size_per_layer_input or vocabulary,
        )
    terms += _relative_positions(build, "decoder.")
    for layer in layers:
        terms += [term.under(f"decoder.layers.{layer.number - 1}.") for term in _layer_terms(build, layer)]
    terms.append(_last_norm(build, "states_0").under("decoder."))
    depths = mtp_depths(shape)
    for depth, inner in enumerate(depths):
        terms += [term.under(f"mtp.layers.{depth}.") for term in _mtp_terms(build, inner, depth)]
    states = [f"states_{i}" for i in range(len(depths) + 1)]
    # As megatron-core runs them: the losses of the depths come first and hang on the decoder's state.
    for i in (*range(1, len(states) * convention.mtp_output_layers), 0):
        # What the output layer reads: one state each, or all of them as one tensor.
        read = (*states, *(["logits"] if i == 0 else [])) if framework.joint_logits else [states[i]]
        terms.append(join(*read, to="normed"))
        tied = "embedding.word_embeddings" if shape.share_embeddings_and_output_weights else "output_layer" if i else ""
        if shape.bert_lm_head:
            terms += bert_lm_head(hidden_size=hidden)
        logits = output_layer(hidden_size=hidden, vocab_size=vocabulary, tied=tied, bias=shape.bert_lm_head)
        terms.append(logits.under(f"mtp.layers.{i - 1}." if i else ""))
    return terms


def _layer_terms(build: Build, layer: Layer) -> Iterator[Term]:
    """One decoder layer: norm and mixer, norm and channel mixer, whichever of them it has."""
    shape = build.shape
    size = build.hidden_size
    if shape.hc_mult and layer.mixer:
        yield from hyper_connections(hidden_size=size, multiplicity=shape.hc_mult)
    if layer.mixer:
        yield from _normed(
            build, MIXERS[layer.mixer](build, layer), "self_attention", "input_layernorm", "post_attention_layernorm"
        )
    if layer.crosses:
        yield from _normed(
            build, _cross_attention(build), "cross_attention", "pre_cross_attn_layernorm", "post_cross_attn_layernorm"
        )
    if layer.channel:
        block = [term.under("mlp.") for term in CHANNELS[layer.channel](build, layer)]
        yield from _normed(build, block, layer.channel, "pre_mlp_layernorm", "post_mlp_layernorm")
    if shape.hidden_size_per_layer_input:
        yield from per_layer_projection(hidden_size=size, per_layer_size=shape.hidden_size_per_layer_input)


def _normed(build: Build, block: list[Term], component: str, before: str, after: str) -> Iterator[Term]:
    """A block with its norms, before it or after it or both."""
    placement, size = build.shape.layernorm_placement, build.hidden_size
    if placement in ("pre", "sandwich"):
        yield norm(before, size, component, source="hidden", to="normed", bias=build.norm_bias)
    else:
        yield join("hidden", to="normed")
    yield from block
    if placement in ("post", "sandwich"):
        yield norm(after, size, component, source="hidden", to="hidden", bias=build.norm_bias)
    yield elementwise("residual", component, size * ADDITION, "hidden")


def _last_norm(build: Build, to: str) -> Term:
    """The norm after the last layer, which writes the states ``to``; without one they are the stream itself."""
    if not build.shape.post_layer_norm:
        return join("hidden", to=to)
    return norm("final_layernorm", build.hidden_size, "output_layer", source="hidden", to=to, bias=build.norm_bias)


def _relative_positions(build: Build, prefix: str) -> list[Term]:
    """T5's table of biases by relative position, which all layers share."""
    rows = build.shape.relative_attention_num_buckets
    if not rows:
        return []
    return [table("relative_attention_bias", "core_attention", rows, build.heads, to=("position_bias",)).under(prefix)]


def encoder_terms(build: Build) -> list[Term]:
    """A bidirectional encoder over the encoder's tokens; it shares the word embedding (T5)."""
    shape = replace(
        build.shape,
        ffn_hidden_size=build.shape.encoder_ffn_hidden_size or build.shape.ffn_hidden_size,
        num_attention_heads=build.shape.encoder_num_attention_heads or build.shape.num_attention_heads,
    )
    own = replace(build, shape=shape)
    embedded = table("word_embeddings", "embedding", shape.vocab_size or 0, own.hidden_size, to=("hidden",))
    terms = [replace(embedded, tied="embedding.word_embeddings"), *_relative_positions(own, "")]
    for layer in encoder_layers(shape, Context("bidirectional", over="encoder")):
        terms += [term.under(f"layers.{layer.number - 1}.") for term in _layer_terms(own, layer)]
    terms.append(_last_norm(own, "states"))
    return [onto(term.under("encoder."), stream="encoder", tokens=ENCODER_TOKENS) for term in terms]


def audio_terms(build: Build, audio: AudioShape) -> list[Term]:
    """An audio encoder: what the decoder cross-attends to (Whisper), or projected into its stream (Qwen2-Audio)."""
    width = audio.d_model or 0
    shape = ModelShape(
        hidden_size=width,
        num_attention_heads=audio.encoder_attention_heads,
        ffn_hidden_size=audio.encoder_ffn_dim,
        encoder_num_layers=audio.encoder_layers,
        normalization="LayerNorm",
        add_bias_linear=True,
        add_key_bias=False,
    )
    own = replace(build, shape=shape)
    terms: list[Term] = []
    for layer in encoder_layers(shape, Context("bidirectional_strided", (STRIDE,), "audio")):
        terms += [term.under(f"audio_model.layers.{layer.number - 1}.") for term in _layer_terms(own, layer)]
    crossed = bool(build.shape.encoder_num_layers)
    if crossed:
        terms.append(_last_norm(own, "states").under("audio_model."))
    terms = [replace(onto(term, stream="audio", tokens=POSITIONS), component="audio_model") for term in terms]
    start = frontend(num_mel_bins=audio.num_mel_bins, hidden_size=width, max_positions=audio.max_source_positions)
    if crossed:
        return [*start, *terms, join("audio.states", to="encoder.states")]
    return [*start, *terms, *projector(hidden_size=width, out_hidden_size=audio.output_dim or 0, pooling=audio.pooling)]


def diffusion_terms(shape: DiffusionShape) -> list[Term]:
    """A diffusion transformer: embedders, blocks with adaLN, final layer (DiT), or two kinds of blocks (Flux)."""
    heads, in_channels = shape.num_attention_heads or 0, shape.in_channels or 0
    hidden = heads * (shape.attention_head_dim or 0)
    ffn, patch = shape.mlp_ratio * hidden, shape.patch_size**2
    text, per_block = bool(shape.joint_attention_dim), bool(shape.num_embeds_ada_norm)
    terms = [replace(diffusion.linear("x_embedder", patch * in_channels, hidden, "latents", "hidden"), kind=Kind.PATCH_EMBEDDING)]
    if text:
        terms.append(
            diffusion.linear(
                "context_embedder", shape.joint_attention_dim, hidden, "text", "context.hidden", diffusion.TEXT_TOKENS
            )
        )
    if not per_block:
        terms += diffusion.embedder("timestep_embedder", diffusion.TIMESTEP_CHANNELS, hidden)
        if shape.guidance_embeds:
            terms += diffusion.embedder("guidance_embedder", diffusion.TIMESTEP_CHANNELS, hidden)
        if shape.pooled_projection_dim:
            terms += diffusion.embedder("text_embedder", shape.pooled_projection_dim, hidden)
    embedders = [
        *diffusion.embedder("timestep_embedder", diffusion.TIMESTEP_CHANNELS, hidden),
        diffusion.class_labels(num_classes=shape.num_embeds_ada_norm, hidden_size=hidden),
    ]
    for i in range(shape.num_layers or 0):
        block = embedders if per_block else []
        block = block + diffusion.joint_block(
            hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn, head_norm=text, text=text
        )
        terms += [term.under(f"decoder.layers.{i}.") for term in block]
    if shape.num_single_layers:
        terms.append(join("hidden", "context.hidden", to="joint.hidden"))
    for i in range(shape.num_single_layers):
        block = diffusion.single_block(hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn)
        terms += [term.under(f"decoder.layers.{(shape.num_layers or 0) + i}.") for term in block]
    if shape.num_single_layers:
        terms.append(join("joint.hidden", to="hidden"))
    if per_block:
        # The last layer computes the first block's conditioning once more.
        again = [replace(term.under("decoder.layers.0."), tied=f"decoder.layers.0.{term.path}", bias=0) for term in embedders]
        terms += again
    return terms + diffusion.final_layer(hidden_size=hidden, out_values=patch * (shape.out_channels or in_channels))


def _mtp_terms(build: Build, layers: list[Layer], depth: int) -> Iterator[Term]:
    """One depth: from the states of the depth before (0: the decoder) to states of its own."""
    shape, size = build.shape, build.hidden_size
    projected = build.convention.hybrid_mtp_projection or not shape.is_hybrid
    if projected:
        yield from multi_token_prediction.entry(hidden_size=size, source=f"states_{depth}", norm_bias=build.norm_bias)
    for layer in layers:
        prefix = f"transformer_layer.layers.{layer.number - 1}." if len(layers) > 1 else "transformer_layer."
        yield from (term.under(prefix) for term in _layer_terms(build, layer))
    if projected:
        yield multi_token_prediction.exit(hidden_size=size, to=f"states_{depth + 1}", norm_bias=build.norm_bias)
    else:
        yield join("hidden", to=f"states_{depth + 1}")


def vision_terms(vision: VisionShape, convention: Convention) -> list[Term]:
    """A vision tower and what projects its patches, in the order of the forward pass."""
    hidden, depth = vision.hidden_size, vision.depth
    assert hidden is not None  # model_shape.read_vision has checked them
    assert depth is not None
    plain = convention.plain_vision_tower
    full = full_attention_layers(depth, 0 if plain else vision.window_patches, vision.fullatt_block_indexes)
    terms = patch_embedding(
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        hidden_size=hidden,
        bias=bool(vision.num_position_embeddings) and not vision.class_token,
        num_position_embeddings=vision.num_position_embeddings,
        class_token=vision.class_token and not plain,
    )
    for i in range(depth):
        layer = vision_layer(
            hidden_size=hidden,
            intermediate_size=vision.mlp_size,
            gated=vision.gated and not plain,
            window_patches=0 if full[i] else vision.window_patches,
            class_token=vision.class_token and not plain,
            norm_bias=not vision.gated,
            heads=vision.heads,
            rope=vision.projector_type in ("merger", "pixel_shuffle"),
        )
        terms += [term.under(f"vision_model.decoder.layers.{i}.") for term in layer]
        if i in vision.deepstack_visual_indexes:
            index = list(vision.deepstack_visual_indexes).index(i)
            # Deepstack mergers normalise what they have merged, the last one before it merges.
            merged = _merger(vision, hidden * vision.spatial_merge_size**2)
            terms += [term.under(f"vision_model.deepstack_merger_list.{index}.") for term in merged]
    return terms + [term.under("vision_model.") for term in PROJECTORS[vision.projector_type](vision)]


# ---- the table: layer kind -> component ----------------------------------------------------------


def _attention(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    head_norm = "full" if shape.qk_layernorm == "full" else "head" if shape.qk_layernorm else ""
    head_size = layer.is_global and shape.global_kv_channels or shape.head_size
    return self_attention(
        hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        num_query_groups=layer.is_global and shape.global_num_query_groups or shape.key_value_heads,
        kv_channels=head_size,
        context=layer.context,
        output_gate=shape.attention_output_gate,
        key_is_value=layer.is_global and shape.global_attention_k_eq_v,
        shares_kv=layer.shares_kv,
        fused=build.fused,
        qkv_bias=shape.add_qkv_bias or shape.add_bias_linear,
        key_bias=shape.add_key_bias,
        position_bias=bool(shape.relative_attention_num_buckets),
        proj_bias=shape.add_proj_bias or shape.add_bias_linear,
        head_norm=head_norm,
        norm_bias=build.norm_bias,
        sinks=shape.softmax_type == "learnable",
        rotated=build.rotated(layer, head_size),
    )


def _cross_attention(build: Build) -> list[Term]:
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


def _attention_and_mamba(build: Build, layer: Layer) -> list[Term]:
    return [*_attention(build, layer), *_mamba(build, layer)]


def _latent_attention(build: Build, layer: Layer, *, context: Context | None = None, absorbed: bool = False) -> list[Term]:
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


def _sparse_attention(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    heads, size, topk = (_required(shape, f"dsa_indexer_{name}") for name in ("n_heads", "head_dim", "topk"))
    selected = Context("topk", (topk,))
    plain = build.convention.indexer_like_any_layer
    terms = _latent_attention(build, layer, context=selected, absorbed=not plain)
    # Layers between two that compute it reuse the last choice of keys.
    position = max(layer.number - max(shape.dsa_indexer_skip_topk_offset, 1), 0)
    if position % shape.dsa_indexer_topk_freq == 0:
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


def _compressed_attention(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    indexed = layer.ratio == INDEXED_RATIO
    heads, size, topk = (
        (_required(shape, f"dsa_indexer_{name}") for name in ("n_heads", "head_dim", "topk")) if indexed else (0, 0, 0)
    )
    return compressed_attention(
        hidden_size=build.hidden_size,
        num_attention_heads=build.heads,
        q_lora_rank=_required(shape, "q_lora_rank"),
        query_head_dim=shape.qk_head_dim + shape.qk_pos_emb_head_dim,
        v_head_dim=shape.v_head_dim,
        o_groups=_required(shape, "o_groups"),
        o_lora_rank=_required(shape, "o_lora_rank"),
        window=shape.csa_window_size,
        nominal_window=build.convention.nominal_sparse_window,
        ratio=layer.ratio,
        indexer_heads=heads,
        indexer_head_dim=size,
        indexer_topk=topk,
    )


def _gated_delta_net(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return gated_delta_net(
        hidden_size=build.hidden_size,
        key_head_dim=shape.linear_key_head_dim,
        num_key_heads=shape.linear_num_key_heads,
        value_head_dim=shape.linear_value_head_dim,
        num_value_heads=shape.linear_num_value_heads,
        conv_kernel_dim=shape.linear_conv_kernel_dim,
        second_generation=shape.variant == "gdn2",
        state_key_dim=shape.linear_value_head_dim if build.convention.square_delta_state else None,
    )


def _kimi_delta_attention(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return kimi_delta_attention(
        hidden_size=build.hidden_size,
        num_heads=_required(shape, "kimi_linear_num_heads"),
        head_dim=_required(shape, "kimi_linear_head_dim"),
        conv_kernel_size=shape.kimi_linear_conv_kernel_size,
    )


def _mamba(build: Build, layer: Layer) -> list[Term]:
    shape, convention = build.shape, build.convention
    heads = shape.mamba_num_heads or 2 * build.hidden_size // shape.mamba_head_dim
    return mamba(
        hidden_size=build.hidden_size,
        inner_size=2 * build.hidden_size if convention.mamba_width_is_twice_hidden else heads * shape.mamba_head_dim,
        state_dim=shape.mamba_state_dim,
        num_groups=shape.mamba_num_groups,
        num_heads=heads,
        conv_kernel_dim=MAMBA_CONV_KERNEL,
        conv_is_free=not convention.mamba_convolution,
        normed=shape.mamba_rms_norm,
    )


def _mlp(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return mlp(
        hidden_size=build.hidden_size,
        ffn_hidden_size=shape.ffn_size * (2 if layer.shares_kv and shape.use_double_wide_mlp else 1),
        gated=shape.gated_linear_unit,
        fused=build.fused,
        bias=shape.add_bias_linear,
        activation=build.activation,
    )


def _moe(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    return moe(
        hidden_size=build.hidden_size,
        num_experts=shape.num_moe_experts or 1,
        topk=shape.moe_router_topk,
        ffn_hidden_size=shape.moe_ffn_hidden_size or shape.ffn_size,
        gated=shape.gated_linear_unit,
        shared_ffn_hidden_size=shape.moe_shared_expert_intermediate_size or 0,
        shared_gate=shape.moe_shared_expert_gate,
        latent_size=shape.moe_latent_size or 0,
        fused=build.fused,
        routing_before_fc2=build.framework.routing_before_fc2,
        bias=shape.add_bias_linear,
        router_bias=shape.add_bias_linear,
        expert_bias=shape.moe_router_enable_expert_bias,
        activation=build.activation,
        sigmoid_scores=shape.moe_router_score_function == "sigmoid",
        branch_norms=shape.moe_branch_norms,
    )


def _merger(vision: VisionShape, norm_size: int) -> list[Term]:
    assert vision.hidden_size is not None
    assert vision.out_hidden_size is not None
    return merger(
        hidden_size=vision.hidden_size,
        spatial_merge_size=vision.spatial_merge_size,
        out_hidden_size=vision.out_hidden_size,
        norm_size=norm_size,
        norm_bias=not vision.gated,
    )


def _pooled_linear(vision: VisionShape) -> list[Term]:
    assert vision.hidden_size is not None
    assert vision.out_hidden_size is not None
    projector = pooled_linear(
        hidden_size=vision.hidden_size,
        spatial_merge_size=vision.spatial_merge_size,
        out_hidden_size=vision.out_hidden_size,
    )
    return [_last_vision_norm(vision, PATCHES), *(term.under("merger.") for term in projector)]


def _last_vision_norm(vision: VisionShape, rows: Statistic) -> Term:
    assert vision.hidden_size is not None
    return norm("post_layernorm", vision.hidden_size, "vision_model", source="patches", to="patches", bias=True, rows=rows)


def _mlp_projector(vision: VisionShape) -> list[Term]:
    assert vision.hidden_size is not None
    assert vision.out_hidden_size is not None
    return mlp_projector(hidden_size=vision.hidden_size, out_hidden_size=vision.out_hidden_size)


def _pixel_shuffle(vision: VisionShape) -> list[Term]:
    assert vision.out_hidden_size is not None
    for name in ("projector_input_dim", "projector_output_dim"):
        if getattr(vision, name) is None:
            raise ConfigError(f"model.vision_config.{name} is missing: projector_type='pixel_shuffle' needs a positive integer")
    projector = pixel_shuffle(
        intermediate_size=vision.mlp_size,
        spatial_merge_size=vision.spatial_merge_size,
        projector_input_dim=vision.projector_input_dim or 0,
        projector_output_dim=vision.projector_output_dim or 0,
        out_hidden_size=vision.out_hidden_size,
    )
    return [_last_vision_norm(vision, PATCHES_AND_CLASS), *projector]


MIXERS: dict[str, Callable[[Build, Layer], list[Term]]] = {
    "attention": _attention,
    "mla": _latent_attention,
    "dsa": _sparse_attention,
    "dsv4": _compressed_attention,
    "gdn": _gated_delta_net,
    "kda": _kimi_delta_attention,
    "mamba": _mamba,
    "attention_and_mamba": _attention_and_mamba,
}
CHANNELS: dict[str, Callable[[Build, Layer], list[Term]]] = {"mlp": _mlp, "moe": _moe}
PROJECTORS: dict[str, Callable[[VisionShape], list[Term]]] = {
    "none": lambda vision: [_last_vision_norm(vision, PATCHES)],
    "merger": lambda vision: [term.under("merger.") for term in _merger(vision, vision.hidden_size or 0)],
    "pooled_linear": _pooled_linear,
    "mlp": lambda vision: [term.under("merger.") for term in _mlp_projector(vision)],
    "pixel_shuffle": _pixel_shuffle,
}


def _required(shape: ModelShape, name: str) -> int:
    value: Any = getattr(shape, name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        what = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"model.{name} {what}: experimental_attention_variant={shape.variant!r} needs a positive integer")
    return value
