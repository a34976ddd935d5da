"""The entry point of the counting floor: every description of a model is read here, once, into a frozen ``Model``.

A configuration with this package's own names (``shapes``) is read directly.  Anything else, such as another framework's
configuration or a live model, is first translated by the reader for its source.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bridge.flops import formats, frameworks, shapes, transforms
from bridge.flops.components.registry import PROJECTORS, SYMBOLS, VARIANTS
from bridge.flops.formats import Formats
from bridge.flops.frameworks import Framework
from bridge.flops.layer_pattern import asked_mixer, pipeline_segments
from bridge.flops.pipeline import PipelineLayout
from bridge.flops.shapes import (
    MAX_LAYERS,
    AudioShape,
    ByteLatentShape,
    ConfigError,
    DiffusionShape,
    ModelShape,
    StackShape,
    VisionShape,
    short,
)
from bridge.flops.terms import Term
from bridge.flops.transforms import Lora

#: Readers of other frameworks' configurations live one floor above and are imported by name when needed, like plugins.
SOURCES = "bridge.config.sources"
#: The loader, which finds a configuration by its name.
NAMES = "bridge.config.named"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything about a model, and about what trains in it, that determines how many operations a batch costs.

    Attributes:
        language: the language model; None for a lone vision tower, a diffusion or a byte-latent transformer.
        vision, audio, diffusion, byte_latent: the other parts, each None if absent.
        adapters: low-rank adapters on the model's linear layers.
        freeze, train: patterns of frozen modules, and of modules that train nevertheless.
        framework: the framework whose layers and backward passes run.
        teacher: a model that runs forward beside this one (distillation).
        reference: the model itself runs forward once more (preference losses).
        adapted: parameter-efficient fine-tuning is on.
        layout: the assignment of layers to pipeline stages.
        sequence_length: the nominal sequence length in tokens.
        true_vocabulary: whether the unpadded vocabulary size is known.
        not_counted: the parts of the model that the plan does not price, one sentence each.
        hardware_unknown: possible recomputation or padding for which the plan has no terms, one sentence each.
        formats: the number format of each matmul.
        traced: the terms of a module that was run (``bridge.tracing``), with the passes that ran; all other parts are then None.
    """

    language: ModelShape | None = None
    vision: VisionShape | None = None
    audio: AudioShape | None = None
    diffusion: DiffusionShape | None = None
    byte_latent: ByteLatentShape | None = None
    adapters: Lora | None = None
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    framework: Framework = frameworks.MEGATRON
    teacher: Model | None = None
    reference: bool = False
    adapted: bool = False
    layout: PipelineLayout = PipelineLayout()
    sequence_length: int | None = None
    true_vocabulary: bool = True
    not_counted: tuple[str, ...] = ()
    hardware_unknown: tuple[str, ...] = ()
    formats: Formats = formats.NOT_TOLD
    traced: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        for part, (prefix, names) in _REQUIRED.items():
            if getattr(self, part) is not None:
                _require(getattr(self, part), prefix, *names)
        for name, layers in self._depths():
            if layers > MAX_LAYERS:
                raise ConfigError(f"{name}: {layers} layers are more than the maximum of {MAX_LAYERS}; is it a mistake?")
        if self.language is not None:
            _check_relations(self.language)
        if self.byte_latent is not None:
            _check_stacks(self.byte_latent)

    def _depths(self) -> Iterator[tuple[str, int]]:
        """Every number of layers, by the field that says it; counted before anything is built."""
        language, vision, audio, diffusion = self.language, self.vision, self.audio, self.diffusion
        if language is not None:
            yield "model.hybrid_layer_pattern", len(language.hybrid_layer_pattern or "")
            yield "model.num_layers", language.num_layers or 0
            yield "model.encoder_num_layers", language.encoder_num_layers or 0
            each = max(len(language.mtp_hybrid_override_pattern or ""), 1)
            yield "model.mtp_num_layers", (language.mtp_num_layers or 0) * each
        if vision is not None:
            yield "model.vision_config.depth", vision.depth or 0
        if audio is not None:
            yield "model.audio_config.encoder_layers", audio.encoder_layers or 0
        if diffusion is not None:
            yield "model.diffusion_config.num_layers", (diffusion.num_layers or 0) + diffusion.num_single_layers
        for name, stack in (self.byte_latent.stacks if self.byte_latent else {}).items():
            yield f"model.byte_latent_config.{name}.num_hidden_layers", stack.num_hidden_layers or 0

    @property
    def shape(self) -> ModelShape:
        """The language model; an empty shape where there is none."""
        return self.language or ModelShape()

    @property
    def trainable(self) -> transforms.Trainable:
        """What trains as the configuration has it."""
        if self.traced:
            frozen = frozenset(self.freeze)
            return transforms.Trainable.of(lambda path: path not in frozen)
        return transforms.trainable_of(self.shape, self.adapters, self.freeze, self.train)


@dataclass(kw_only=True)
class Description:
    """A model in this package's names, as the reader of another source leaves it; the fields are the sections of a recipe.

    Attributes:
        model: a ``ModelShape`` or a mapping of its fields, ``thinker_config`` and ``deepstack_visual_indexes`` among them.
        peft, teacher, reference_model, framework, not_counted: see ``Model``.
        hardware_unknown: see ``Model``.
        parallel: megatron-core's parallel sizes.
        formats: a ``Formats``; None: what megatron-core's fields of ``model`` say.
        traced: the whole model as it ran, in place of the fields of ``model``.
    """

    model: Any
    peft: Any = None
    parallel: Any = None
    teacher: Any = None
    reference_model: Any = False
    framework: str | None = None
    not_counted: Sequence[str] = ()
    hardware_unknown: Sequence[str] = ()
    formats: Formats | None = None
    traced: Model | None = None


def get(source: Any, name: str) -> Any:
    """A field of a mapping or of an object; None if it is missing."""
    if isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)


def model_of(cfg: Any) -> Any:
    """``cfg.model`` if it exists, else ``cfg`` itself."""
    model = get(cfg, "model")
    return cfg if model is None else model


def read(cfg: Any) -> Model:
    """Read and check a configuration.

    Args:
        cfg: anything with ``.model``, a model's configuration, a mapping of its fields, a live model, a recipe's name, a file,
            or a ``Model``.

    Raises:
        ConfigError: A required field is missing, or a value is impossible.
    """
    if isinstance(cfg, Model):
        return cfg
    if isinstance(cfg, (str, os.PathLike)):
        cfg = importlib.import_module(NAMES).read_config(cfg)
    described = _described(cfg)
    traced = get(described, "traced")
    return traced if isinstance(traced, Model) else _read(described)


def read_vision(cfg: Any) -> VisionShape | None:
    """The vision tower of a configuration, regardless of the rest of the model."""
    alone = cfg if isinstance(cfg, Model) else Model(vision=_vision(model_of(_described(cfg))))
    return alone.vision


def _described(cfg: Any) -> Any:
    """The same in this package's names."""
    native = isinstance(cfg, Description) or isinstance(model_of(cfg), ModelShape)
    return cfg if native else importlib.import_module(SOURCES).translate(cfg)


def _read(cfg: Any) -> Model:
    """A ``Model`` from a configuration in this package's names."""
    source = model_of(cfg)
    diffusion, vision, byte_latent = _diffusion(source), _vision(source), _byte_latent(source)
    language = None
    alone = get(source, "num_layers") is None and get(source, "hidden_size") is None
    if diffusion is None and byte_latent is None and not (vision is not None and alone):
        language = _language(cfg, source)
    audio, left_out = _audio(source)
    lora, freeze, train, unpriced = _peft(get(cfg, "peft"))
    teacher = get(cfg, "teacher") or get(source, "teacher")
    declared = get(cfg, "not_counted")
    return Model(
        language=language,
        vision=vision,
        audio=audio,
        diffusion=diffusion,
        byte_latent=byte_latent,
        adapters=lora,
        # The entropy model only says where patches begin.
        freeze=(*freeze, "patcher") if byte_latent else freeze,
        train=train,
        framework=frameworks.get(get(cfg, "framework") or "megatron"),
        teacher=None if teacher is None else read(teacher),
        reference=bool(get(cfg, "reference_model")),
        adapted=get(cfg, "peft") is not None,
        layout=read_layout(cfg),
        sequence_length=language.seq_length if language else None,
        true_vocabulary=get(source, "vocab_size") is not None or get(cfg, "vocab_size") is not None,
        not_counted=(*left_out, *_unknown_variant(language), *map(str, _listed(declared)), *unpriced, *_capacity(source)),
        hardware_unknown=tuple(get(cfg, "hardware_unknown") or ()),
        formats=get(cfg, "formats")
        or formats.read(partial(get, source), hybrid=bool(language and language.hybrid_layer_pattern)),
    )


def _capacity(source: Any) -> list[str]:
    """Of a recipe whose experts may drop tokens; readers of other sources say it themselves."""
    factor = None if isinstance(source, Mapping) else get(source, "moe_expert_capacity_factor")
    if factor is None or factor < 0 or not get(source, "num_moe_experts"):
        return []
    return [f"moe_expert_capacity_factor={short(factor)}: tokens that experts drop are counted, padding that they add is not"]


_LAYOUT_ALIASES = {
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
}


def read_layout(cfg: Any) -> PipelineLayout:
    """How a configuration cuts its model into pipeline stages; what cannot be is found out when the layers are placed."""
    source = get(cfg, "parallel") or model_of(cfg)
    names = [item.name for item in dataclasses.fields(PipelineLayout) if item.name != "segments"]
    options = {name: get(source, name) or get(source, _LAYOUT_ALIASES.get(name, name)) for name in names}
    given = {name: value for name, value in options.items() if value is not None}
    return PipelineLayout(**given, segments=pipeline_segments(get(model_of(cfg), "hybrid_layer_pattern")))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


# ---- the parts -----------------------------------------------------------------------------------

_VISION_ALIASES = {
    "depth": ("num_hidden_layers", "num_layers"),
    "num_heads": ("num_attention_heads",),
    "hidden_size": ("embed_dim",),
    "in_channels": ("in_chans", "num_channels"),
    "projector_output_dim": ("vision_output_dim",),
    "spatial_merge_size": ("merge_size",),
}
#: Parts other than the language model -> what goes before their fields in a sentence, and the sizes that have no default.
_REQUIRED = {
    "vision": ("model.vision_config.", ("depth", "hidden_size", "out_hidden_size")),
    "audio": ("model.audio_config.", ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "output_dim")),
    "diffusion": ("model.diffusion_config.", ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")),
}


def _fill(kind: type, source: Any, prefix: str, aliases: Mapping[str, tuple[str, ...]] = {}) -> Any:
    """A shape from the fields of ``source``, checked against their ranges; None means the default."""
    values = {}
    for item in dataclasses.fields(kind):
        for name in (item.name, *aliases.get(item.name, ())):
            value = get(source, name)
            if value is not None:
                values[item.name] = value
                break
    shape = kind(**values)
    shapes.check(shape, prefix)
    return shape


def _part(model: Any, name: str) -> Any:
    """A configuration inside the model's; None without one."""
    source = get(model, name)
    if isinstance(source, (bool, int, float, str, list, tuple)):
        raise ConfigError(f"model.{name}={short(source)} must be a mapping of its fields")
    return source


def _require(shape: Any, prefix: str, *names: str, why: str = "") -> None:
    for name in names:
        if getattr(shape, name) is None:
            raise ConfigError(f"{prefix}{name} is missing: set it to a positive integer{why}")


def _language(cfg: Any, source: Any) -> ModelShape:
    # A TransformerConfig of megatron-core's knows neither: they are arguments of the model built from it.
    beside = {name: get(cfg, name) for name in ("vocab_size", "seq_length") if get(source, name) is None}
    size = get(get(cfg, "parallel"), "tensor_model_parallel_size") if get(source, "tensor_model_parallel_size") is None else None
    shape: ModelShape = _fill(ModelShape, _Overlaid(source, {**beside, "tensor_model_parallel_size": size}), "model.")
    if shape.vocab_size is None:
        shape.vocab_size = shape.padded_vocab_size
    return shape


class _Overlaid:
    """A source with values for fields where it has none."""

    def __init__(self, source: Any, values: Mapping[str, Any]) -> None:
        self._source, self._values = source, values

    def __getattr__(self, name: str) -> Any:
        value = self._values.get(name)
        return get(self._source, name) if value is None else value


def _vision(model: Any) -> VisionShape | None:
    """``vision_config`` may sit on the model or under ``thinker_config``, ``deepstack_visual_indexes`` on any of the three."""
    thinker = get(model, "thinker_config")
    source = _part(model, "vision_config")
    if source is None:
        source = _part(thinker, "vision_config")
    if source is None:
        return None
    prefix = _REQUIRED["vision"][0]
    vision: VisionShape = _fill(VisionShape, source, prefix, _VISION_ALIASES)
    for place in (source, model, thinker):
        indexes = get(place, "deepstack_visual_indexes")
        if indexes is not None:
            vision.deepstack_visual_indexes = tuple(indexes)
            break
    if vision.out_hidden_size is None:
        vision.out_hidden_size = get(model, "hidden_size") or vision.hidden_size
    if vision.projector_type not in PROJECTORS:
        raise ConfigError(f"{prefix}projector_type={vision.projector_type!r} is not known; choose one of {', '.join(PROJECTORS)}")
    _require(vision, prefix, *PROJECTORS[vision.projector_type].required)
    return vision


def _diffusion(model: Any) -> DiffusionShape | None:
    source = _part(model, "diffusion_config")
    if source is None:
        return None
    shape: DiffusionShape = _fill(DiffusionShape, source, _REQUIRED["diffusion"][0])
    return shape


def _byte_latent(model: Any) -> ByteLatentShape | None:
    """A field that is there and None means "none", not "the default"."""
    source = _part(model, "byte_latent_config")
    if source is None or isinstance(source, ByteLatentShape):
        return source
    prefix = "model.byte_latent_config."
    values = {item.name: get(source, item.name) for item in dataclasses.fields(ByteLatentShape)}
    kept = {name: value for name, value in values.items() if value is not None}
    for name in ("local_attention_window_len", "patcher_config"):
        if values[name] is None and (name in source if isinstance(source, Mapping) else hasattr(source, name)):
            kept[name] = None
    for name in ("encoder_config", "decoder_config", "global_config", "patcher_config"):
        if kept.get(name) is not None:
            kept[name] = _stack(kept[name], f"{prefix}{name}.")
    for part in ("encoder", "decoder"):
        everywhere = get(get(source, f"{part}_config"), "cross_attn_all_layers")
        if everywhere is not None:
            kept[f"{part}_cross_attn_all_layers"] = everywhere
    patcher = get(source, "patcher_config")
    if patcher is not None and (not isinstance(patcher, Mapping) or "sliding_window" in patcher):
        kept["patcher_sliding_window"] = get(patcher, "sliding_window")
    if get(source, "patch_in_forward") is False:
        kept["patcher_config"] = None
    shape = ByteLatentShape(**kept)
    shapes.check(shape, prefix)
    return shape


def _stack(source: Any, prefix: str) -> StackShape:
    return source if isinstance(source, StackShape) else _fill(StackShape, source, prefix)


def _check_stacks(shape: ByteLatentShape) -> None:
    """Raise ConfigError where the transformers of a byte-latent model have no size or do not fit together."""
    for name, stack in shape.stacks.items():
        _require(stack, f"model.byte_latent_config.{name}.", "num_hidden_layers", "hidden_size", "num_attention_heads")
        heads, groups = stack.num_attention_heads or 1, stack.num_key_value_heads or 1
        if (stack.hidden_size or 0) % heads or heads % groups:
            raise ConfigError(
                f"model.byte_latent_config.{name}: num_attention_heads={heads} must divide hidden_size={stack.hidden_size} and "
                f"be a multiple of num_key_value_heads={stack.num_key_value_heads}"
            )
    encoder, decoder = shape.encoder_config.hidden_size, shape.decoder_config.hidden_size
    if encoder != decoder:
        raise ConfigError(
            f"model.byte_latent_config: encoder_config.hidden_size={encoder} and decoder_config.hidden_size={decoder} must "
            "agree: the decoder starts from the encoder's bytes"
        )


def _audio(model: Any) -> tuple[AudioShape | None, list[str]]:
    """The audio encoder, and a sentence about one of another kind than Whisper's."""
    source = _part(model, "audio_config")
    if source is None:
        return None, []
    if get(source, "d_model") is None:
        return None, ["audio_config: only audio encoders like Whisper's are counted"]
    audio: AudioShape = _fill(AudioShape, source, _REQUIRED["audio"][0])
    if audio.output_dim is None:
        audio.output_dim = get(model, "hidden_size")
    return audio, []


def _unknown_variant(shape: ModelShape | None) -> list[str]:
    variant = shape.experimental_attention_variant if shape else None
    if not variant or variant in VARIANTS:
        return []
    return [f"experimental_attention_variant={variant!r}: this attention is not counted"]


# ---- what fields of one model say together ----------------------------------------------------------


def _check_relations(shape: ModelShape) -> None:
    """Raise ConfigError where fields are missing or contradict each other."""
    hybrid, pattern = shape.is_hybrid, shape.hybrid_layer_pattern
    _require(shape, "model.", "hidden_size", "vocab_size", *([] if pattern else ["num_layers"]))
    if hybrid:
        for symbol, row in SYMBOLS.items():
            _require(
                shape,
                "model.",
                *(row.required if symbol in (pattern or "*") else ()),
                why=f" (hybrid_layer_pattern has {symbol!r})",
            )
    else:
        _require(shape, "model.", "num_attention_heads")
    for problem in _contradictions(shape):
        raise ConfigError(problem)
    if not hybrid and (mixer := asked_mixer(shape)):
        _require(shape, "model.", *mixer.required, why=f" ({mixer.option}={short(getattr(shape, mixer.option))} needs it)")


def _contradictions(shape: ModelShape) -> Iterator[str]:
    """Sentences about fields that cannot stand beside each other."""
    heads, hidden, layers = shape.num_attention_heads, shape.hidden_size or 0, shape.num_layers or 0
    if heads and shape.kv_channels is None and not shape.has_latents and hidden % heads:
        yield (
            f"model.num_attention_heads={heads} does not divide model.hidden_size={hidden}: "
            "change one of them or set model.kv_channels"
        )
    if heads and heads % shape.key_value_heads and not shape.multi_latent_attention:
        yield f"model.num_query_groups={shape.num_query_groups} does not divide model.num_attention_heads={heads}"
    window = shape.window_size
    if window is not None and not _is_int(window):
        if isinstance(window, str) or not isinstance(window, Sequence) or len(window) != 2 or not all(map(_is_int, window)):
            yield f"model.window_size={short(window)} must be an integer or a pair (left, right)"
    if shape.layernorm_placement not in (placements := ("pre", "post", "sandwich", "parallel", "shared")):
        yield f"model.layernorm_placement={shape.layernorm_placement!r} must be one of {', '.join(placements)}"
    if shape.num_moe_experts and shape.moe_router_topk > shape.num_moe_experts:
        yield f"model.moe_router_topk={shape.moe_router_topk} is larger than model.num_moe_experts={shape.num_moe_experts}"
    if (shape.num_kv_shared_layers or 0) > layers and not shape.is_hybrid:
        yield f"model.num_kv_shared_layers={shape.num_kv_shared_layers} is more than model.num_layers={layers}"
    chosen = shape.dsa_indexer_layers
    if chosen is not None and (isinstance(chosen, str) or not isinstance(chosen, Sequence) or len(chosen) != layers):
        yield f"model.dsa_indexer_layers={short(chosen)} must be a list with one entry for each of {layers} layers"
    for number in shape.kimi_kda_layers or ():
        if not _is_int(number) or not 1 <= number <= layers:
            yield f"model.kimi_kda_layers has the layer {short(number)}; layers are numbered from 1 to model.num_layers={layers}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---- adapters ------------------------------------------------------------------------------------

#: What ``peft.kind`` may be.
PEFT_KINDS = ("lora", "qlora", "dora", "freeze")

#: Options of other libraries' adapters that change the work in ways that are not priced.
_UNPRICED_PEFT = (
    "rank_pattern", "exclude_modules", "layers_to_transform", "layer_replication", "modules_to_save",
    "target_parameters", "trainable_token_indices", "lora_bias", "use_qalora",
)  # fmt: skip


def _peft(peft: Any) -> tuple[Lora | None, tuple[str, ...], tuple[str, ...], list[str]]:
    """The adapters that ``peft`` asks for, patterns of what it freezes and what trains nevertheless, and what is not priced.

    Ours has ``kind``, ``dim``, ``target_modules``, ``freeze`` and ``train``; Megatron-Bridge's LoRA and DoRA objects have the
    same ``dim`` and ``target_modules``.
    """
    if peft is None:
        return None, (), (), []
    if get(peft, "kind") is None and get(peft, "dim") is None:
        # Another library's object for a method whose adapters and frozen parts are unknown.
        return None, (), (), [f"peft: {type(peft).__name__} has no dim; it is priced as training in full, without adapters"]
    unpriced = [
        f"peft.{name}={short(get(peft, name))}: adapters are priced without it" for name in _UNPRICED_PEFT if get(peft, name)
    ]
    freeze, train = tuple(get(peft, "freeze") or ()), tuple(get(peft, "train") or ())
    kind = get(peft, "kind")
    if kind is None:
        kind = "dora" if "dora" in type(peft).__name__.lower() else "lora"
    if kind == "freeze":
        return None, freeze, train, unpriced
    if kind not in PEFT_KINDS:
        raise ConfigError(f"peft.kind={kind!r} is not known; choose one of {', '.join(PEFT_KINDS)}")
    dim, targets = get(peft, "dim"), get(peft, "target_modules")
    if targets is not None and (isinstance(targets, str) or not isinstance(targets, Sequence)):
        raise ConfigError(f"peft.target_modules={short(targets)} must be a list of names, for example [linear_qkv]")
    lora = Lora(
        shapes.whole("peft.dim", dim),
        tuple(targets or transforms.DEFAULT_TARGETS),
        kind == "dora",
        bool(get(peft, "dropout")),
        kind == "qlora",
    )
    return lora, freeze, train, unpriced


def peft_of(cfg: Any) -> tuple[Lora | None, tuple[str, ...], tuple[str, ...]]:
    """The adapters of ``cfg.peft``, the patterns of what it freezes and of what trains nevertheless; (None, (), ()) without."""
    return _peft(get(cfg, "peft"))[:3]
