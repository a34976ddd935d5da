"""What a layer keeps of the tokens it has seen: keys and values, latents, or a state of fixed size.

A row of ``CACHES`` for every row of ``model.MIXERS``.  How many tokens are kept or read follows from the same attention
contexts that count pairs: one more query sees as many keys as the pairs grow by.  What a compressor holds of a block that is
not finished is left out (fewer tokens than its ratio).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.flops.components.compressed_attention import INDEXED_RATIO
from bridge.flops.conventions import EXACT
from bridge.flops.layer_pattern import Layer, decoder_layers
from bridge.flops.model import MAMBA_CONV_KERNEL
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import CAUSAL, Context

#: What cross attention sees.
ENCODER = Context("bidirectional", over="encoder")


@dataclass(frozen=True)
class Cache:
    """What one layer keeps.

    Attributes:
        name: what it is.
        entries: numbers per kept token; in all for a state.
        kept: the tokens that stay; None for a state, whatever the length.
        read: the tokens that one more query reads, where it does not read all that are kept.
        owned: False where an earlier layer keeps it and this one reads it.
        is_state: a recurrence sums into it, so that it is held in float32.
    """

    name: str
    entries: int
    kept: Context | None = None
    read: Context | None = None
    owned: bool = True
    is_state: bool = False

    def entries_after(self, tokens: int, encoder_tokens: int = 0) -> int:
        """Numbers held after so many tokens."""
        return self.entries * self._tokens(self.kept, tokens, encoder_tokens) if self.owned and tokens else 0

    def entries_read(self, position: int, encoder_tokens: int = 0) -> int:
        """Numbers that the query at ``position`` (from 1) reads, its own token's included."""
        return self.entries * self._tokens(self.read or self.kept, position, encoder_tokens)

    def entries_written(self, position: int) -> int:
        """Numbers that the token at ``position`` (from 1) writes."""
        if not self.owned or self.kept == ENCODER:
            return 0
        if self.kept is not None and self.kept.shape == "compressed":
            return self.entries * (seen(self.kept, position) - seen(self.kept, position - 1))
        return self.entries

    @staticmethod
    def _tokens(context: Context | None, position: int, encoder_tokens: int) -> int:
        if context is None:
            return 1
        return encoder_tokens if context == ENCODER else seen(context, position)


def seen(context: Context, position: int) -> int:
    """Keys that the query at ``position`` (from 1) sees: what the pairs grow by."""
    factor, statistic = EXACT.statistic(context)
    grown = statistic.of(position) - statistic.of(position - 1) if position else 0
    return int(factor * grown)


def layer_caches(shape: ModelShape) -> list[list[Cache]]:
    """What each decoder layer keeps."""

    def caches(layer: Layer) -> list[Cache]:
        kept = CACHES[layer.mixer](shape, layer) if layer.mixer else []
        crossed = Cache("cross_keys_and_values", 2 * shape.key_value_heads * shape.head_size, ENCODER)
        return [*kept, crossed] if layer.crosses else kept

    return [caches(layer) for layer in decoder_layers(shape)]


# ---- the table: layer kind -> what it keeps ------------------------------------------------------


def _attention(shape: ModelShape, layer: Layer) -> list[Cache]:
    groups = (layer.is_global and shape.global_num_query_groups) or shape.key_value_heads
    width = (layer.is_global and shape.global_kv_channels) or shape.head_size
    # Shared projections make keys and values of their own: norms and RoPE tell them apart.
    return [Cache("keys_and_values", 2 * groups * width, layer.context, owned=not layer.shares_kv)]


def _latent(shape: ModelShape, layer: Layer) -> list[Cache]:
    return [Cache("latents", shape.kv_lora_rank + shape.qk_pos_emb_head_dim, layer.context)]


def _sparse(shape: ModelShape, layer: Layer) -> list[Cache]:
    latents = shape.kv_lora_rank + shape.qk_pos_emb_head_dim
    caches = [Cache("latents", latents, CAUSAL, read=Context("topk", (shape.dsa_indexer_topk or 0,)))]
    if max(layer.number - max(shape.dsa_indexer_skip_topk_offset, 1), 0) % shape.dsa_indexer_topk_freq == 0:
        caches.append(Cache("indexer_keys", shape.dsa_indexer_head_dim or 0, CAUSAL))
    return caches


def _compressed(shape: ModelShape, layer: Layer) -> list[Cache]:
    caches = [Cache("keys_and_values", shape.v_head_dim, Context("window", (shape.csa_window_size,)))]
    if layer.ratio:
        kept, read = Context("compressed", (layer.ratio,)), None
        if layer.ratio == INDEXED_RATIO:
            read = Context("compressed_topk", (layer.ratio, shape.dsa_indexer_topk or 0))
            caches.append(Cache("indexer_keys", shape.dsa_indexer_head_dim or 0, kept))
        caches.append(Cache("compressed_keys", shape.v_head_dim, kept, read))
    return caches


def _recurrent(state: int, convolved: int, kernel: int) -> list[Cache]:
    return [Cache("state", state, is_state=True), Cache("convolution_inputs", (kernel - 1) * convolved)]


def _gated_delta_net(shape: ModelShape, layer: Layer) -> list[Cache]:
    keys = shape.linear_key_head_dim * shape.linear_num_key_heads
    values = shape.linear_value_head_dim * shape.linear_num_value_heads
    return _recurrent(shape.linear_key_head_dim * values, 2 * keys + values, shape.linear_conv_kernel_dim)


def _kimi_delta_attention(shape: ModelShape, layer: Layer) -> list[Cache]:
    heads, size = shape.kimi_linear_num_heads or 0, shape.kimi_linear_head_dim or 0
    return _recurrent(heads * size * size, 3 * heads * size, shape.kimi_linear_conv_kernel_size)


def _mamba(shape: ModelShape, layer: Layer) -> list[Cache]:
    heads = shape.mamba_num_heads or 2 * (shape.hidden_size or 0) // shape.mamba_head_dim
    inner = heads * shape.mamba_head_dim
    convolved = inner + 2 * shape.mamba_num_groups * shape.mamba_state_dim
    return _recurrent(inner * shape.mamba_state_dim, convolved, MAMBA_CONV_KERNEL)


CACHES: dict[str, Callable[[ModelShape, Layer], list[Cache]]] = {
    "attention": _attention,
    "mla": _latent,
    "dsa": _sparse,
    "dsv4": _compressed,
    "gdn": _gated_delta_net,
    "kda": _kimi_delta_attention,
    "mamba": _mamba,
    "attention_and_mamba": lambda shape, layer: [*_attention(shape, layer), *_mamba(shape, layer)],
}
