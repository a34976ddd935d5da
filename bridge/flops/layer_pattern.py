"""The kind of each layer of a model: hybrid patterns, moe_layer_freq, windows, chunks, linear attention, MTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bridge.flops.build import Layer
from bridge.flops.components.registry import CHANNELS, MIXERS, SYMBOLS, VARIANTS
from bridge.flops.frameworks import Framework
from bridge.flops.frequencies import flagged
from bridge.flops.heterogeneous import Block, blocks
from bridge.flops.rows import Mixer
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import CAUSAL, Context


def decoder_layers(shape: ModelShape) -> list[Layer]:
    """The decoder's layers, first to last."""
    if shape.is_hybrid:
        pattern = hybrid_patterns(shape)[0]
        return _layers(shape, _hybrid_kinds(shape, pattern), len(pattern))
    channels = ["moe" if moe else "mlp" if shape.ffn_size else "" for moe in moe_layers(shape)]
    layers = _layers(shape, list(zip(_mixers(shape), channels, strict=True)), shape.num_layers or 0)
    if shape.block_configs is None:
        return layers
    return [_with_block(layer, block) for layer, block in zip(layers, blocks(shape), strict=True)]


def _with_block(layer: Layer, block: Block) -> Layer:
    """A layer with what takes the place of its attention and of its MLP."""
    return replace(
        layer,
        mixer=layer.mixer if block.attention is None else block.attention,
        channel=layer.channel if block.mlp is None else block.mlp,
        num_query_groups=block.num_query_groups,
        ffn_hidden_size=block.ffn_hidden_size,
    )


def mtp_depths(shape: ModelShape) -> list[list[Layer]]:
    """The layers of each multi-token-prediction depth: the decoder's last kind, or what a hybrid pattern says."""
    if shape.is_hybrid:
        main, *depths = hybrid_patterns(shape)
        count = len(main)
        return [_layers(shape, _hybrid_kinds(shape, depth), max(count, len(depth)), in_mtp=True) for depth in depths]
    if not shape.mtp_num_layers:
        return []
    last = decoder_layers(shape)[-1]
    numbers = range(1, shape.mtp_num_layers + 1)
    return [[replace(last, number=number, memory=0, form=_form(shape, last.mixer, number, in_mtp=True))] for number in numbers]


def _layers(shape: ModelShape, kinds: Sequence[tuple[str, str]], count: int, in_mtp: bool = False) -> list[Layer]:
    """Layers of these kinds; what else they are follows from their numbers, as in a decoder of ``count`` layers."""
    local, unrotated = local_layers(shape, count), no_rope_layers(shape, count)
    has_local = any(local)
    return [
        Layer(
            number=i + 1,
            mixer=mixer,
            channel=channel,
            context=_local_context(shape) if local[i] else _full(shape),
            is_global=has_local and not local[i],
            shares_kv=i >= len(kinds) - (shape.num_kv_shared_layers or 0),
            form=_form(shape, mixer, i + 1, in_mtp),
            rotates=not unrotated[i],
            crosses=bool(shape.encoder_num_layers),
            memory=list(shape.engram_layers).index(i) + 1 if i in (shape.engram_layers or ()) else 0,
        )
        for i, (mixer, channel) in enumerate(kinds)
    ]


def plain_layer(shape: ModelShape, number: int) -> Layer:
    """A layer of ordinary attention over all tokens, and experts in a model that has any."""
    mixer = "dsa" if shape.experimental_attention_variant == "dsa" else _ordinary(shape)
    form = _form(shape, mixer, number, in_mtp=True)
    return Layer(number, mixer, "moe" if shape.num_moe_experts else "mlp", _full(shape), form=form)


def _hybrid_kinds(shape: ModelShape, pattern: str) -> list[tuple[str, str]]:
    """The (mixer, channel mixer) of each symbol."""
    taken = {row.takes: row for row in MIXERS.values() if row.takes and getattr(shape, row.option)}
    if shape.hybrid_mla_symbol != "*" or "+" in (shape.hybrid_layer_pattern or ""):
        taken.pop("*", None)  # MLA has its own symbol
    rows = [taken.get(symbol) or SYMBOLS[symbol] for symbol in pattern]
    return [(row.name, "") if isinstance(row, Mixer) else ("", row.name) for row in rows]


def encoder_layers(shape: ModelShape, context: Context) -> list[Layer]:
    """The layers of a bidirectional encoder beside the decoder: attention and MLP."""
    return [Layer(i, "attention", "mlp", context) for i in range(1, (shape.encoder_num_layers or 0) + 1)]


def hybrid_patterns(shape: ModelShape) -> list[str]:
    """The symbols of the decoder and of each multi-token-prediction depth."""
    main, *depths = (shape.hybrid_layer_pattern or pattern_from_ratios(shape)).split("/")
    patterns = [main.replace("|", ""), *filter(None, depths)]
    own = shape.mtp_hybrid_override_pattern
    if own and len(patterns) == 1:
        patterns += [own] * (shape.mtp_num_layers or 0)
    elif len(patterns) == 2:
        # One pattern and mtp_num_layers: every depth repeats it.
        patterns += patterns[1:] * ((shape.mtp_num_layers or 1) - 1)
    for symbol in "".join(patterns):
        if symbol not in SYMBOLS:
            raise ConfigError(f"model.hybrid_layer_pattern has the symbol {symbol!r}; known are {' '.join(SYMBOLS)}, | and /")
    if shape.num_layers is not None and len(patterns[0]) != shape.num_layers:
        raise ConfigError(
            f"model.hybrid_layer_pattern has {len(patterns[0])} layers, but model.num_layers={shape.num_layers}: make them agree"
        )
    return patterns


def pipeline_segments(pattern: str | None) -> tuple[int, ...]:
    """Decoder layers between the ``|`` of a hybrid pattern; empty without a pattern."""
    return tuple(map(len, pattern.partition("/")[0].split("|"))) if pattern else ()


def pattern_from_ratios(shape: ModelShape) -> str:
    """What megatron-core makes of the two ratios: attention evenly spaced between Mamba, then MLPs in Mamba's places."""
    assert shape.num_layers is not None
    attention, mlp = round(shape.num_layers * shape.hybrid_attention_ratio), round(shape.num_layers * shape.hybrid_mlp_ratio)
    mamba = shape.num_layers - attention
    pattern = _spread("M" * shape.num_layers, "*", mamba / (attention + 1))
    return _spread(pattern, "-", (mamba - mlp) / mlp) if mlp else pattern


def _spread(pattern: str, symbol: str, run: float) -> str:
    """``symbol`` in place of the ``M`` that stands after each run of this many of them, which need not be a whole number."""
    left, spread = run, ""
    for old in pattern:
        if old == "M":
            ends = left < 0.5
            left += run if ends else -1
            old = symbol if ends else old
        spread += old
    return spread


def moe_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are MoE: layer i (from 0) when i % N == 0, or as the list says."""
    if shape.num_moe_experts is None:
        return [False] * (shape.num_layers or 0)
    return flagged(shape, "moe_layer_freq", lambda number, freq: (number - 1) % freq == 0)


def no_rope_layers(shape: ModelShape, count: int) -> list[bool]:
    """Which of ``count`` layers are without RoPE: every Nth, or as the list says."""
    if shape.no_rope_freq is None:
        return [False] * count
    return flagged(shape, "no_rope_freq", lambda number, freq: number % freq == 0, count)


def local_layers(shape: ModelShape, count: int) -> list[bool]:
    """Which of ``count`` layers see a window or a chunk instead of everything."""
    if shape.attention_chunk_size:
        return [not flag for flag in no_rope_layers(shape, count)]
    if not shape.window:
        return [False] * count
    if shape.interleaved_attn_pattern is not None:
        pattern = shape.interleaved_attn_pattern
        if not isinstance(pattern, Sequence) or len(pattern) != 2 or min(pattern) < 0 or not sum(pattern):
            raise ConfigError(f"model.interleaved_attn_pattern={pattern!r} must be a pair (local layers, global layers)")
        local, total = pattern[0], sum(pattern)
        return [i % total < local for i in range(count)]
    if shape.window_attn_skip_freq is None:
        return [True] * count
    return flagged(shape, "window_attn_skip_freq", count=count)


def _ordinary(shape: ModelShape) -> str:
    """The mixer of layers that are nothing else."""
    return "mla" if shape.multi_latent_attention else "attention"


def asked_mixer(shape: ModelShape) -> Mixer | None:
    """The row whose option the model sets; None where its layers are ordinary or of a variant that no row has."""
    return next((row for row in MIXERS.values() if row.asked(shape)), None)


def _mixers(shape: ModelShape) -> list[str]:
    """The mixer of each decoder layer: that of the row whose option the model sets, where its row puts it."""
    row = asked_mixer(shape)
    if row is not None and row.layers is not None:
        return [row.name if here else row.beside or _ordinary(shape) for here in row.layers(shape)]
    # An unknown variant is reported by not_counted; its layers keep their channel mixers.
    known = (shape.experimental_attention_variant or "") in ("", *VARIANTS)
    return [_ordinary(shape) if known else ""] * (shape.num_layers or 0)


def _form(shape: ModelShape, mixer: str, number: int, in_mtp: bool = False) -> int:
    """Which form of its mixer a layer has."""
    form = MIXERS[mixer].form if mixer else None
    return form(shape, number, in_mtp) if form else 0


def _full(shape: ModelShape) -> Context:
    return CAUSAL if shape.is_causal else Context("bidirectional")


def _local_context(shape: ModelShape) -> Context:
    if shape.attention_chunk_size:
        return Context("chunk", (shape.attention_chunk_size,))
    return Context("window", (shape.window,))


def not_counted(shape: ModelShape) -> tuple[str, ...]:
    """What a configuration asks for and the model built from it does not have."""
    if not (shape.is_hybrid and shape.mtp_num_layers and len(hybrid_patterns(shape)) == 1):
        return ()
    return (f"mtp_num_layers={shape.mtp_num_layers}: a hybrid model needs a pattern for them",)


def run_otherwise(shape: ModelShape, framework: Framework) -> tuple[str, ...]:
    """One sentence for each kind of block that the framework's own code computes in another way than it is priced."""

    def sentences() -> Iterator[str]:
        for layer in (*decoder_layers(shape), *(layer for depth in mtp_depths(shape) for layer in depth)):
            if layer.mixer:
                yield MIXERS[layer.mixer].executed(framework)
            if layer.channel:
                yield CHANNELS[layer.channel].executed(framework)

    return tuple(filter(None, dict.fromkeys(sentences())))
