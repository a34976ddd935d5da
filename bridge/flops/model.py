"""From a model's shape to its terms: layer after layer, in the order of the forward pass.  No formulas.

What a layer is made of is in the rows of ``components``; a new architecture needs no line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.byte_latent_model import byte_latent_terms
from bridge.flops.components import (
    bottleneck,
    cross_attention,
    diffusion,
    engram,
    hyper_connections,
    multi_token_prediction,
    per_layer_embeddings,
)
from bridge.flops.components.audio_encoder import POSITIONS, STRIDE, audio_projector, frontend
from bridge.flops.components.cross_attention import ENCODER, ENCODER_TOKENS
from bridge.flops.components.output_layer import bert_lm_head, embedding, output_layer
from bridge.flops.components.registry import CHANNELS, MIXERS, PROJECTORS
from bridge.flops.components.vision_projector import merger_of
from bridge.flops.components.vision_tower import full_attention_layers, patch_embedding, vision_layer
from bridge.flops.conventions import Convention
from bridge.flops.elementwise import ACTIVATIONS, ADDITION, NOTHING
from bridge.flops.frameworks import Framework
from bridge.flops.layer_pattern import decoder_layers, encoder_layers, mtp_depths, plain_layer
from bridge.flops.reading import Model
from bridge.flops.shapes import AudioShape, ModelShape, VisionShape
from bridge.flops.terms import Context, Role, Term, TermPlace, elementwise, join, norm, onto, table


def root_terms(model: Model, convention: Convention, framework: Framework) -> list[Term]:
    """The terms of whatever kind of model it is, forward."""
    if model.diffusion is not None:
        return diffusion.terms(model.diffusion)
    if model.byte_latent is not None:
        return byte_latent_terms(model.byte_latent, convention)
    if model.language is not None:
        return model_terms(model.language, model.vision, model.audio, convention, framework)
    return vision_terms(model.vision, convention) if model.vision is not None else []


def model_terms(
    shape: ModelShape, vision: VisionShape | None, audio: AudioShape | None, convention: Convention, framework: Framework
) -> list[Term]:
    """All terms of a language model and its towers, with megatron-core's module paths."""
    own, shape = shape, convention.seen(shape)
    if own.vision_config is not None and shape.vision_config is None:
        vision = None
    build, layers = Build(shape, convention, framework), decoder_layers(shape)
    before = _before_the_decoder(build, vision, audio, len(layers))
    return [
        *(term.changed(place=TermPlace.FIRST) for term in before),
        *_relative_positions(build, "decoder."),
        *_stack(build, layers, "decoder."),
        _last_norm(build, "states_0").under("decoder."),
        *_after_the_decoder(build),
    ]


def _before_the_decoder(build: Build, vision: VisionShape | None, audio: AudioShape | None, num_layers: int) -> Iterator[Term]:
    """Towers, embeddings, encoders: what the first layer reads."""
    shape = build.shape
    if vision is not None:
        yield from vision_terms(vision, build.convention)
    if audio is not None:
        yield from (term.marked(Role.ENCODER) for term in audio_terms(build, audio))
    yield from embedding(
        vocab_size=build.vocabulary,
        hidden_size=build.hidden_size,
        max_position_embeddings=shape.max_position_embeddings or 0 if shape.position_embedding_type == "learned_absolute" else 0,
        num_tokentypes=shape.num_tokentypes,
        normed=shape.embedding_layernorm,
    )
    if shape.unpriced_parameters:
        yield table("unpriced", "embedding", shape.unpriced_parameters, to=("unpriced",))
    if shape.encoder_num_layers and audio is None:
        yield from encoder_terms(build)
    if shape.hidden_size_per_layer_input:
        yield from per_layer_embeddings.per_layer_input(
            hidden_size=build.hidden_size,
            num_layers=num_layers,
            per_layer_size=shape.hidden_size_per_layer_input,
            vocab_size=shape.vocab_size_per_layer_input or build.vocabulary,
        )


def _after_the_decoder(build: Build) -> Iterator[Term]:
    """Multi-token prediction, and the output layer over the states of each depth."""
    shape, depths = build.shape, mtp_depths(build.shape)
    for depth, inner in enumerate(depths):
        yield from (
            term.under(f"mtp.layers.{depth}.", Role.TRAINING_ONLY, place=TermPlace.MTP)
            for term in _mtp_terms(build, inner, depth)
        )
    states = [f"states_{i}" for i in range(len(depths) + 1)]
    # As megatron-core runs them: the losses of the depths come first and hang on the decoder's state.
    for i in (*range(1, len(states) * build.convention.mtp_output_layers), 0):
        # What the output layer reads: one state each, or all of them as one tensor.
        read = (*states, *(["logits"] if i == 0 else [])) if build.framework.joint_logits else [states[i]]
        yield join(*read, to="normed")
        tied = "embedding.word_embeddings" if shape.share_embeddings_and_output_weights else "output_layer" if i else ""
        if shape.bert_lm_head:
            yield from bert_lm_head(hidden_size=build.hidden_size)
        bias = shape.bert_lm_head or shape.add_output_bias
        logits = output_layer(hidden_size=build.hidden_size, vocab_size=build.vocabulary, tied=tied, bias=bias)
        yield logits.under(f"mtp.layers.{i - 1}.", Role.TRAINING_ONLY) if i else logits


def _stack(build: Build, layers: Iterable[Layer], prefix: str) -> Iterator[Term]:
    """Layers one after the other; equal ones are priced once."""
    priced: dict[Layer, list[Term]] = {}
    for layer in layers:
        kind = replace(layer, number=0)
        if kind not in priced:
            priced[kind] = list(_layer_terms(build, kind))
        yield from (term.under(f"{prefix}layers.{layer.number - 1}.", place=layer.number - 1) for term in priced[kind])


def _layer_terms(build: Build, layer: Layer) -> Iterator[Term]:
    """One decoder layer: norm and mixer, norm and channel mixer, whichever of them it has."""
    shape, counted = build.shape, build.convention.hyper_connections_of
    if layer.memory:
        yield from engram.PART.terms(build, layer)
    if shape.hc_mult and layer.mixer and (counted is None or layer.mixer in counted):
        yield from hyper_connections.PART.terms(build, layer)
    if shape.attention_output_size:
        yield from _bottleneck_layer(build, layer, shape.attention_output_size)
        return
    if shape.layernorm_placement == "parallel":
        yield _norm(build, "pre_mlp_layernorm", layer.channel, source="hidden", to="beside")
    if layer.mixer:
        mixed = MIXERS[layer.mixer].terms(build, layer)
        yield from _normed(build, mixed, "self_attention", "input_layernorm", "post_attention_layernorm")
    if layer.crosses:
        crossed = cross_attention.PART.terms(build, layer)
        yield from _normed(build, crossed, "cross_attention", "pre_cross_attn_layernorm", "post_cross_attn_layernorm")
    if layer.channel:
        block = CHANNELS[layer.channel].terms(build, layer)
        yield from _normed(build, block, layer.channel, "pre_mlp_layernorm", "post_mlp_layernorm")
    if shape.hidden_size_per_layer_input:
        yield from per_layer_embeddings.PART.terms(build, layer)


def _normed(build: Build, block: list[Term], component: str, before: str, after: str) -> Iterator[Term]:
    """A block with its norms, before it or after it or both; the MLP beside an attention reads what came before that."""
    placement = build.shape.layernorm_placement
    if placement in ("parallel", "shared") and before == "pre_mlp_layernorm":
        yield join("beside" if placement == "parallel" else "normed", to="normed")
    elif placement == "post":
        yield join("hidden", to="normed")
    else:
        yield _norm(build, before, component, source="hidden", to="normed")
    yield from block
    if placement in ("post", "sandwich"):
        yield _norm(build, after, component, source="hidden", to="hidden")
    yield elementwise("residual", component, build.hidden_size * ADDITION, "hidden")


def _norm(build: Build, name: str, component: str, *, source: str, to: str) -> Term:
    """A norm over the residual stream."""
    if not build.shape.layernorm_learned:
        return norm(name, build.hidden_size, component, source=source, to=to).changed(weight=False)
    return norm(name, build.hidden_size, component, source=source, to=to, bias=build.norm_bias)


def _bottleneck_layer(build: Build, layer: Layer, width: int) -> Iterator[Term]:
    """Attention that ends in a narrower width, experts in it, and a projection back; only the layer as a whole is residual."""
    yield norm("input_layernorm", build.hidden_size, "self_attention", source="hidden", to="normed", bias=build.norm_bias)
    yield from MIXERS[layer.mixer].terms(build, layer)
    inner = replace(build, shape=replace(build.shape, hidden_size=width))
    yield from bottleneck.bottleneck(CHANNELS[layer.channel].terms(inner, layer), hidden_size=build.hidden_size, width=width)


def _last_norm(build: Build, to: str) -> Term:
    """The norm after the last layer, which writes the states ``to``; without one they are the stream itself."""
    if not build.shape.post_layer_norm:
        return join("hidden", to=to)
    return _norm(build, "final_layernorm", "output_layer", source="hidden", to=to)


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
    terms = [replace(embedded, tied="embedding.word_embeddings", roles=Role.LOOKED_UP), *_relative_positions(own, "")]
    terms += [*_stack(own, encoder_layers(shape, ENCODER), ""), _last_norm(own, "states")]
    return [onto(term.under("encoder."), stream="encoder", tokens=ENCODER_TOKENS).marked(Role.ENCODER) for term in terms]


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
    layers = encoder_layers(shape, Context("bidirectional_strided", (STRIDE,), "audio"))
    terms = list(_stack(own, layers, "audio_model."))
    crossed = bool(build.shape.encoder_num_layers)
    if crossed:
        terms.append(_last_norm(own, "states").under("audio_model."))
    terms = [replace(onto(term, stream="audio", tokens=POSITIONS), component="audio_model") for term in terms]
    start = frontend(num_mel_bins=audio.num_mel_bins, hidden_size=width, max_positions=audio.max_source_positions)
    if crossed:
        return [*start, *terms, join("audio.states", to="encoder.states")]
    return [*start, *terms, *audio_projector(hidden_size=width, out_hidden_size=audio.output_dim or 0, pooling=audio.pooling)]


def _mtp_terms(build: Build, layers: list[Layer], depth: int) -> Iterator[Term]:
    """One depth: from the states of the depth before (0: the decoder) to its own states."""
    shape, size = build.shape, build.hidden_size
    projected = build.convention.mtp_projection and (build.convention.hybrid_mtp_projection or not shape.is_hybrid)
    if build.convention.plain_mtp_layer and not shape.is_hybrid:
        layers = [plain_layer(shape, depth + 1)]
    build = replace(build, shape=build.convention.seen_in_mtp(shape))
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
    assert hidden is not None  # reading.read has checked them
    assert depth is not None
    plain, projector = convention.plain_vision_tower, PROJECTORS[vision.projector_type]
    full = full_attention_layers(depth, 0 if plain else vision.window_patches, vision.fullatt_block_indexes)
    terms = patch_embedding(
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        hidden_size=hidden,
        bias=bool(vision.num_position_embeddings) and (vision.layer_scale or not vision.class_token),
        num_position_embeddings=vision.num_position_embeddings,
        class_token=vision.class_token and not plain,
        normed=not vision.layer_scale,
        patch_norm=vision.patch_norm,
    )
    # Two kinds of layers at most: those that see the whole image, and those with windows.
    kinds = {
        whole: vision_layer(
            hidden_size=hidden,
            intermediate_size=vision.mlp_size,
            gated=vision.gated and not plain,
            window_patches=0 if whole else vision.window_patches,
            class_token=vision.class_token and not plain,
            bias=vision.linear_bias,
            qkv_bias=vision.qkv_bias,
            norm_bias=not vision.gated,
            layer_scale=vision.layer_scale,
            heads=vision.heads,
            rope=projector.rotary,
            activation=ACTIVATIONS.get(vision.activation, NOTHING),
        )
        for whole in set(full)
    }
    for i, whole in enumerate(full):
        terms += [term.under(f"vision_model.decoder.layers.{i}.") for term in kinds[whole]]
        for index, behind in enumerate(vision.deepstack_visual_indexes):
            # Megatron counts one for each index, also behind a layer that is not there.
            if behind == i or (plain and behind > i == depth - 1):
                terms += [term.under(f"vision_model.deepstack_merger_list.{index}.") for term in merger_of(vision, deep=True)]
    for index, behind in enumerate(vision.deepstack_visual_indexes):
        if behind >= depth and not plain:  # built behind a layer that is not there, and never run
            unused = (term.changed(times=Fraction(0), outputs=("unused",)) for term in merger_of(vision, deep=True))
            terms += [term.under(f"vision_model.deepstack_merger_list.{index}.") for term in unused]
    terms += [term.under("vision_model.") for term in projector.terms(vision)]
    return [term.changed(place=TermPlace.FIRST).marked(Role.IMAGES) for term in terms]
