"""What a layer's cache holds, and what one more token reads of it and writes to it.

What a layer keeps is in its mixer's row.  How many tokens are kept or read follows from the same attention contexts that
count pairs: one more query sees as many keys as the pairs grow by.  What a compressor holds of a block that is not finished is
left out (fewer tokens than its ratio).
"""

from __future__ import annotations

from bridge.flops.components import cross_attention
from bridge.flops.components.registry import MIXERS
from bridge.flops.conventions import EXACT
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.rows import Cache
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Context, Shape


def layer_caches(shape: ModelShape) -> list[list[Cache]]:
    """The caches of each decoder layer; none for a layer whose mixer is unknown."""
    return [
        [
            *(MIXERS[layer.mixer].cache(shape, layer) if layer.mixer else []),
            *(cross_attention.PART.cache(shape, layer) if layer.crosses else []),
        ]
        for layer in decoder_layers(shape)
    ]


def seen(context: Context, position: int) -> int:
    """Keys that the query at ``position`` (from 1) sees: what the pairs grow by."""
    factor, statistic = EXACT.statistic(context)
    grown = statistic.of(position) - statistic.of(position - 1) if position else 0
    return int(factor * grown)


def entries_after(cache: Cache, tokens: int, encoder_tokens: int = 0) -> int:
    """Numbers held after this many tokens."""
    return cache.entries * _tokens(cache.kept, tokens, encoder_tokens) if cache.owned and tokens else 0


def entries_read(cache: Cache, position: int, encoder_tokens: int = 0) -> int:
    """Numbers that the query at ``position`` (from 1) reads, its own token's included."""
    return cache.entries * _tokens(cache.read or cache.kept, position, encoder_tokens)


def entries_written(cache: Cache, position: int) -> int:
    """Numbers that the token at ``position`` (from 1) writes."""
    kept = cache.kept
    if not cache.owned or kept == cross_attention.ENCODER:
        return 0
    if kept is not None and kept.shape is Shape.COMPRESSED:
        return cache.entries * (seen(kept, position) - seen(kept, position - 1))
    return cache.entries


def _tokens(context: Context | None, position: int, encoder_tokens: int) -> int:
    if context is None:
        return 1
    return encoder_tokens if context == cross_attention.ENCODER else seen(context, position)
