"""Which kind of layer stands at which place: hybrid patterns, moe_layer_freq, windows, chunks, linear attention, MTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bridge.flops.build import Layer
from bridge.flops.components.registry import MIXERS, SYMBOLS, VARIANTS
from bridge.flops.frequencies import everywhere, flagged
from bridge.flops.rows import Channel, Mixer
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import CAUSAL, Context


def decoder_layers(shape: ModelShape) -> list[Layer]:
    """The decoder's layers, first to last."""
    if shape.is_hybrid:
        return _hybrid_layers(shape, hybrid_patterns(shape)[0])
    assert shape.num_layers is not None
    count = shape.num_layers
    moe, local, mixers = moe_layers(shape), local_layers(shape), _mixers(shape)
    unrotated = no_rope_layers(shape)
    has_local = any(local)
    return [
        Layer(
            number=i + 1,
            mixer=mixers[i],
            channel="moe" if moe[i] else "mlp" if shape.ffn_size else "",
            context=_local_context(shape) if local[i] else _full(shape),
            is_global=has_local and not local[i],
            shares_kv=i >= count - (shape.num_kv_shared_layers or 0),
            form=_form(shape, mixers[i], i + 1),
            rotates=not unrotated[i],
            crosses=bool(shape.encoder_num_layers),
        )
        for i in range(count)
    ]


def mtp_depths(shape: ModelShape) -> list[list[Layer]]:
    """The layers of each multi-token-prediction depth: the decoder's last kind, or what a hybrid pattern says."""
    if shape.is_hybrid:
        depths = [_hybrid_layers(shape, pattern, in_mtp=True) for pattern in hybrid_patterns(shape)[1:]]
        # One pattern and mtp_num_layers: every depth repeats it.
        return depths * (shape.mtp_num_layers or 1) if len(depths) == 1 else depths
    if not shape.mtp_num_layers:
        return []
    last = decoder_layers(shape)[-1]
    numbers = range(1, shape.mtp_num_layers + 1)
    return [[replace(last, number=number, form=_form(shape, last.mixer, number, in_mtp=True))] for number in numbers]


def _hybrid_layers(shape: ModelShape, pattern: str, in_mtp: bool = False) -> list[Layer]:
    return [_hybrid_layer(shape, SYMBOLS[symbol], number, in_mtp) for number, symbol in enumerate(pattern, 1)]


def _hybrid_layer(shape: ModelShape, row: Mixer | Channel, number: int, in_mtp: bool) -> Layer:
    if not isinstance(row, Mixer):
        return Layer(number, "", row.name, _full(shape))
    # A star is the model's ordinary attention.
    mixer = _ordinary(shape) if row is MIXERS["attention"] else row.name
    return Layer(number, mixer, "", _full(shape), form=_form(shape, mixer, number, in_mtp))


def encoder_layers(shape: ModelShape, context: Context) -> list[Layer]:
    """The layers of a bidirectional encoder beside the decoder: attention and MLP."""
    return [Layer(i, "attention", "mlp", context) for i in range(1, (shape.encoder_num_layers or 0) + 1)]


def hybrid_patterns(shape: ModelShape) -> list[str]:
    """The symbols of the decoder and of each MTP depth; from the two ratios where no pattern is set."""
    if not shape.hybrid_layer_pattern:
        assert shape.num_layers is not None
        attention = round(shape.num_layers * shape.hybrid_attention_ratio)
        mlp = round(shape.num_layers * shape.hybrid_mlp_ratio)
        return ["*" * attention + "-" * mlp + "M" * (shape.num_layers - attention - mlp)]
    patterns = [part.replace("|", "") for part in shape.hybrid_layer_pattern.split("/")]
    for symbol in "".join(patterns):
        if symbol not in SYMBOLS:
            raise ConfigError(f"model.hybrid_layer_pattern has the symbol {symbol!r}; known are {' '.join(SYMBOLS)}, | and /")
    if shape.num_layers is not None and len(patterns[0]) != shape.num_layers:
        raise ConfigError(
            f"model.hybrid_layer_pattern has {len(patterns[0])} layers, but model.num_layers={shape.num_layers}: make them agree"
        )
    return patterns


def moe_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are MoE: layer i (from 0) when i % N == 0, or as the list says."""
    if shape.num_moe_experts is None:
        return _nowhere(shape)
    return flagged(shape, "moe_layer_freq", lambda number, freq: (number - 1) % freq == 0)


def no_rope_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are without RoPE: every Nth, or as the list says."""
    if shape.no_rope_freq is None:
        return _nowhere(shape)
    return flagged(shape, "no_rope_freq", lambda number, freq: number % freq == 0)


def local_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers see a window or a chunk instead of everything."""
    count = shape.num_layers or 0
    if shape.attention_chunk_size:
        return [not flag for flag in no_rope_layers(shape)]
    if not shape.window:
        return _nowhere(shape)
    if shape.interleaved_attn_pattern is not None:
        pattern = shape.interleaved_attn_pattern
        if not isinstance(pattern, Sequence) or len(pattern) != 2 or min(pattern) < 0 or not sum(pattern):
            raise ConfigError(f"model.interleaved_attn_pattern={pattern!r} must be a pair (local layers, global layers)")
        local, total = pattern[0], sum(pattern)
        return [i % total < local for i in range(count)]
    if shape.window_attn_skip_freq is None:
        return everywhere(shape)
    return flagged(shape, "window_attn_skip_freq", lambda number, freq: number % freq != 0)


def _nowhere(shape: ModelShape) -> list[bool]:
    return [False] * (shape.num_layers or 0)


def _ordinary(shape: ModelShape) -> str:
    """The mixer of layers that are nothing else."""
    return "mla" if shape.multi_latent_attention else "attention"


def _mixers(shape: ModelShape) -> list[str]:
    """The mixer of each decoder layer: that of the row whose option the model sets, where its row puts it."""
    row = next((row for row in MIXERS.values() if row.asked(shape)), None)
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


def pipeline_stages(
    num_layers: int, stages: int, chunks: int = 1, in_first: int | None = None, in_last: int | None = None
) -> list[int]:
    """The pipeline stage of each decoder layer, in megatron-core's order.

    Every stage has the same number of layers, unless the first or last is given another one.  With the interleaved
    schedule each stage's layers are cut into ``chunks``, and the model walks over all stages once per chunk.

    Args:
        num_layers: decoder layers.
        stages: pipeline_model_parallel_size.
        chunks: virtual_pipeline_model_parallel_size.
        in_first: num_layers_in_first_pipeline_stage.
        in_last: num_layers_in_last_pipeline_stage.
    """
    ends = {stage: size for stage, size in ((0, in_first), (stages - 1, in_last)) if size is not None}
    even, left_over = divmod(num_layers - sum(ends.values()), max(stages - len(ends), 1))
    sizes = [ends.get(stage, even) for stage in range(stages)]
    if left_over or even < 0 or any(size % chunks for size in sizes) or sum(sizes) != num_layers:
        raise ConfigError(
            f"{num_layers} layers do not split evenly over pipeline_model_parallel_size={stages} stages of "
            f"virtual_pipeline_model_parallel_size={chunks} chunks; set num_layers_in_first_pipeline_stage and "
            "num_layers_in_last_pipeline_stage, or other sizes"
        )
    return [stage for _ in range(chunks) for stage, size in enumerate(sizes) for _ in range(size // chunks)]
