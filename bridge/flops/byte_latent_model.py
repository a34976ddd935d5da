"""The byte-latent transformer (Pagnoni et al., arXiv:2412.09871) on the same terms as every other model.

Its cost follows from two numbers per sequence: how many bytes it has, and into how many patches they fall
(``planning.byte_patches``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from bridge.flops.components import byte_latent as blocks
from bridge.flops.conventions import Convention
from bridge.flops.shapes import ByteLatentShape, StackShape
from bridge.flops.terms import CAUSAL, Context, Pass, Term, join, table


def byte_latent_terms(shape: ByteLatentShape, convention: Convention) -> list[Term]:
    """All terms of a byte-latent transformer in the order of its forward pass."""
    encoder, decoder, latent, patcher = shape.encoder_config, shape.decoder_config, shape.global_config, shape.patcher_config
    # A dense kernel holds every byte against every patch.
    dense = convention.statistic(Context("window", (1,)))[1].kind == "square"
    terms: list[Term] = []

    def sizes(stack: StackShape) -> dict[str, Any]:
        groups = stack.num_key_value_heads or stack.num_attention_heads
        heads = {"num_attention_heads": stack.num_attention_heads, "num_query_groups": groups}
        return {"hidden_size": stack.hidden_size, **heads}

    def layer(stack: StackShape, component: str, context: Context, stream: str = "hidden") -> list[Term]:
        width = stack.intermediate_size or int(8 * stack.hidden_size / 3)
        return blocks.layer(**sizes(stack), ffn_hidden_size=width, context=context, component=component, stream=stream)

    def bytes_seen(window: int | None) -> Context:
        return Context("window", (window,)) if window else CAUSAL

    cross = partial(blocks.cross_attention, multiplicity=shape.cross_attn_k, dense=dense)

    def put(part: str, new: Iterable[Term]) -> None:
        terms.extend(term.under(f"{part}.") for term in new)

    if patcher is not None:
        width = patcher.hidden_size
        model = [table("embed_tokens", blocks.ENTROPY_MODEL, shape.vocab_size, width, to=("hidden",))]
        for number in range(patcher.num_hidden_layers):
            whole = layer(patcher, blocks.ENTROPY_MODEL, bytes_seen(shape.patcher_sliding_window))
            model += [term.under(f"layers.{number}.") for term in whole]
        model += blocks.head(hidden_size=width, vocab_size=shape.vocab_size, component=blocks.ENTROPY_MODEL)
        put("patcher", (term.changed(allowed=Pass.FORWARD) for term in model))  # it runs before the model that trains

    width, local = encoder.hidden_size, bytes_seen(shape.local_attention_window_len)
    embedding = blocks.byte_embedding(
        vocab_size=shape.vocab_size,
        hidden_size=width,
        hash_tables=shape.hash_tables,
        hash_vocab_size=shape.encoder_hash_byte_group_vocab,
    )
    put("local_encoder", embedding)
    for number in range(encoder.num_hidden_layers):
        put(f"local_encoder.layers.{number}", layer(encoder, "local_encoder", local))
        last = number == encoder.num_hidden_layers - 1
        if last or shape.encoder_cross_attn_all_layers:
            # Each layer starts the patches anew: only the last layer's are read.
            allowed = Pass.TRAINING if last else Pass.FORWARD
            tied = "" if last else "local_encoder.patch_embedding_projection"
            pooled = blocks.pooled_patches(hidden_size=width, multiplicity=shape.cross_attn_k, allowed=allowed, tied=tied)
            asked = cross(
                **sizes(encoder), from_patches=True, source="patch_query", keys="hidden", to="patch_states", allowed=allowed
            )
            put("local_encoder", pooled)
            put(f"local_encoder.cross_attn_layers.{number if shape.encoder_cross_attn_all_layers else 0}", asked)

    wide = width * shape.cross_attn_k
    if wide == latent.hidden_size:
        terms.append(join("patch_states", to="patches"))
    else:
        entry = blocks.projection(
            "token_embedding_projection", wide, latent.hidden_size, "patch_states", "patch_input", blocks.LATENT
        )
        put("global_transformer", [entry, join("patch_input", to="patches")])
    for number in range(latent.num_hidden_layers):
        whole = layer(latent, blocks.LATENT, Context("causal", over="byte_patches"), "patches")
        put(f"global_transformer.layers.{number}", whole)

    keys = blocks.projection(
        "patch_embedding_projection", latent.hidden_size, wide, "patches", "patch_keys", blocks.CROSS_ATTENTION
    )
    put("local_decoder", [keys])
    for number in range(decoder.num_hidden_layers):
        if number == 0 or shape.decoder_cross_attn_all_layers:
            told = cross(**sizes(decoder), from_patches=False, source="hidden", keys="patch_keys", to="hidden")
            put(f"local_decoder.cross_attn_layers.{number}", told)
        put(f"local_decoder.layers.{number}", layer(decoder, "local_decoder", local))
    terms += blocks.head(hidden_size=width, vocab_size=shape.vocab_size, component="output_layer")
    return terms
