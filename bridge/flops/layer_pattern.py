"""Which kind of layer stands at which place: hybrid patterns, moe_layer_freq, windows, chunks, linear attention, MTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge.flops.components.compressed_attention import RATIOS
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import CAUSAL, Context

#: Symbols of hybrid patterns -> (mixer, channel mixer).
SYMBOLS = {
    "*": ("attention", ""),
    "M": ("mamba", ""),
    "-": ("", "mlp"),
    "E": ("", "moe"),
    "G": ("gdn", ""),
    # DeepSeek sparse attention; attention and Mamba side by side on one norm (Falcon-H1).
    "D": ("dsa", ""),
    "P": ("attention_and_mamba", ""),
}


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        number: from 1, counted apart in the decoder and in MTP.
        mixer: ``attention``, ``mla``, ``gdn``, ``kda``, ``mamba``, ``attention_and_mamba``, ``dsa``, ``dsv4``, or empty.
        channel: ``mlp``, ``moe``, or empty.
        context: which keys its attention sees.
        is_global: sees everything in a model that also has local layers.
        shares_kv: takes keys and values from an earlier layer.
        ratio: of the compressed keys (DeepSeek-V4).
        rotates: RoPE turns its queries and keys, if the model has RoPE at all.
        crosses: also attends to an encoder.
    """

    number: int
    mixer: str
    channel: str
    context: Context = CAUSAL
    is_global: bool = False
    shares_kv: bool = False
    ratio: int = 0
    rotates: bool = True
    crosses: bool = False


def decoder_layers(shape: ModelShape) -> list[Layer]:
    """The decoder's layers, first to last."""
    if shape.is_hybrid:
        return _hybrid_layers(shape, hybrid_patterns(shape)[0])
    assert shape.num_layers is not None
    count = shape.num_layers
    moe, local, mixers = moe_layers(shape), local_layers(shape), _mixers(shape)
    ratios, unrotated = _compress_ratios(shape), no_rope_layers(shape)
    has_local = any(local)
    return [
        Layer(
            number=i + 1,
            mixer=mixers[i],
            channel="moe" if moe[i] else "mlp" if shape.ffn_size else "",
            context=_local_context(shape) if local[i] else _full(shape),
            is_global=has_local and not local[i],
            shares_kv=i >= count - (shape.num_kv_shared_layers or 0),
            ratio=ratios[i],
            rotates=not unrotated[i],
            crosses=bool(shape.encoder_num_layers),
        )
        for i in range(count)
    ]


def mtp_depths(shape: ModelShape) -> list[list[Layer]]:
    """The layers of each multi-token-prediction depth: the decoder's last kind, or what a hybrid pattern says."""
    if shape.is_hybrid:
        depths = [_hybrid_layers(shape, pattern) for pattern in hybrid_patterns(shape)[1:]]
        # One pattern and mtp_num_layers: every depth repeats it.
        return depths * (shape.mtp_num_layers or 1) if len(depths) == 1 else depths
    if not shape.mtp_num_layers:
        return []
    last, ratios = decoder_layers(shape)[-1], _compress_ratios(shape)
    return [
        [replace(last, number=depth + 1, ratio=ratios[(shape.num_layers or 0) + depth])] for depth in range(shape.mtp_num_layers)
    ]


def _hybrid_layers(shape: ModelShape, pattern: str) -> list[Layer]:
    mla = {"attention": "mla"} if shape.multi_latent_attention else {}
    kinds = [SYMBOLS[symbol] for symbol in pattern]
    return [Layer(i, mla.get(mixer, mixer), channel, _full(shape)) for i, (mixer, channel) in enumerate(kinds, 1)]


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
    count = shape.num_layers or 0
    if shape.num_moe_experts is None:
        return [False] * count
    freq = shape.moe_layer_freq
    if _is_int(freq):
        _check_freq("moe_layer_freq", freq)
        return [i % freq == 0 for i in range(count)]
    return _flags("moe_layer_freq", freq, count)


def no_rope_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are without RoPE: every Nth, or as the list says."""
    count, freq = shape.num_layers or 0, shape.no_rope_freq
    if freq is None:
        return [False] * count
    if _is_int(freq):
        _check_freq("no_rope_freq", freq)
        return [i % freq == 0 for i in range(1, count + 1)]
    return _flags("no_rope_freq", freq, count)


def local_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers see a window or a chunk instead of everything."""
    count = shape.num_layers or 0
    if shape.attention_chunk_size:
        return [not flag for flag in no_rope_layers(shape)]
    if not shape.window:
        return [False] * count
    if shape.interleaved_attn_pattern is not None:
        pattern = shape.interleaved_attn_pattern
        if not isinstance(pattern, Sequence) or len(pattern) != 2 or min(pattern) < 0 or not sum(pattern):
            raise ConfigError(f"model.interleaved_attn_pattern={pattern!r} must be a pair (local layers, global layers)")
        local, total = pattern[0], sum(pattern)
        return [i % total < local for i in range(count)]
    freq = shape.window_attn_skip_freq
    if freq is None:
        return [True] * count
    if _is_int(freq):
        _check_freq("window_attn_skip_freq", freq)
        return [i % freq != 0 for i in range(1, count + 1)]
    return _flags("window_attn_skip_freq", freq, count)


def linear_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are linear attention: layer i (from 1) unless i % N == 0, or as the list says."""
    count, freq = shape.num_layers or 0, shape.linear_attention_freq
    if freq is None:
        raise ConfigError(
            f"model.linear_attention_freq is missing: experimental_attention_variant={shape.variant!r} needs it "
            "(an integer N: every Nth layer is attention; or a list with 1 for linear)"
        )
    if _is_int(freq):
        _check_freq("linear_attention_freq", freq)
        return [i % freq != 0 for i in range(1, count + 1)]
    return _flags("linear_attention_freq", freq, count)


def _mixers(shape: ModelShape) -> list[str]:
    count, ordinary = shape.num_layers or 0, "mla" if shape.multi_latent_attention else "attention"
    if shape.kimi_kda_layers:
        return ["kda" if number in shape.kimi_kda_layers else "mla" for number in range(1, count + 1)]
    if shape.variant in ("gdn", "gdn2"):
        return ["gdn" if linear else ordinary for linear in linear_layers(shape)]
    named = {"": ordinary, "dsa": "dsa", "dsv4_hybrid": "dsv4"}
    # An unknown variant is reported by not_counted; its layers keep their channel mixers.
    return [named.get(shape.variant, "")] * count


def _compress_ratios(shape: ModelShape) -> list[int]:
    count = (shape.num_layers or 0) + (shape.mtp_num_layers or 0)
    if shape.variant != "dsv4_hybrid":
        return [0] * count
    ratios = shape.csa_compress_ratios
    if ratios is None:
        raise ConfigError("model.csa_compress_ratios is missing: give one of 0, 4, 128 for each layer, MTP layers included")
    if len(ratios) != count:
        raise ConfigError(
            f"model.csa_compress_ratios has {len(ratios)} entries, but num_layers + mtp_num_layers is {count}: give one a layer"
        )
    for ratio in ratios:
        if ratio not in RATIOS:
            raise ConfigError(f"model.csa_compress_ratios has the ratio {ratio!r}: it must be one of {RATIOS}")
    return list(ratios)


def _full(shape: ModelShape) -> Context:
    return CAUSAL if shape.is_causal else Context("bidirectional")


def _local_context(shape: ModelShape) -> Context:
    if shape.attention_chunk_size:
        return Context("chunk", (shape.attention_chunk_size,))
    return Context("window", (shape.window,))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_freq(name: str, freq: int) -> None:
    if freq <= 0:
        raise ConfigError(f"model.{name}={freq} must be a positive integer, or a list with one entry a layer")


def _flags(name: str, value: Any, count: int) -> list[bool]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"model.{name}={value!r} must be an integer or a list with one entry a layer")
    if len(value) != count:
        raise ConfigError(f"model.{name} has {len(value)} entries, but model.num_layers={count}: give one entry a layer")
    return [bool(flag) for flag in value]


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
