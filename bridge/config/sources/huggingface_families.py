"""How each Hugging Face ``model_type`` is read: one row a family.

A row says which Hugging Face field holds which of our options and what the architecture settles; a rule stands only
where an option is more than another name.  What transformers assumes where a ``config.json`` is silent is data of its
own, ``huggingface_defaults``.  Source: the ``configuration_*.py`` and ``modeling_*.py`` files of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from bridge.config.sources.huggingface_defaults import DEFAULTS
from bridge.flops.shapes import ConfigError

Options = dict[str, Any]


class Fields:
    """A Hugging Face configuration and its defaults; remembers what was read, so that nothing is ignored silently."""

    def __init__(self, values: Mapping[str, Any], defaults: str, place: str = "") -> None:
        self._values, self._defaults, self._read = values, DEFAULTS.get(defaults, {}), set[str]()
        self._kind = defaults
        self.place = place
        self.not_counted: list[str] = []

    def get(self, *names: str) -> Any:
        """The first of these fields that is set; where none is mentioned, the default; None for neither.

        A field that is there with the value null is mentioned: transformers keeps the null.
        """
        self._read.update(names)
        source = self._values if any(name in self._values for name in names) else self._defaults
        name = next((name for name in names if source.get(name) is not None), None)
        return None if name is None else self._checked(name, source[name])

    def _checked(self, name: str, value: Any) -> Any:
        """A value, unless the class default is a number and this is none."""
        default = self._defaults.get(name)
        if isinstance(default, int) and not isinstance(default, bool) and not isinstance(value, (int, float)):
            raise ConfigError(f"{self.place}{name}={value!r} in the Hugging Face config must be a number, for example {default}")
        return value

    def part(self, name: str) -> Fields:
        """A configuration inside this one (``vision_config``)."""
        values = {} if (found := self.get(name)) is None else found
        if not isinstance(values, Mapping):
            raise ConfigError(f"{self.place}{name}={values!r} in the Hugging Face config must be an object with fields")
        return Fields(values, f"{self._kind}.{name}", f"{self.place}{name}.")

    def report(self, name: str, consequence: str) -> None:
        """Say what the counts leave out because of a field."""
        self.not_counted.append(f"{self.place}{name}={_short(self._values.get(name))}: {consequence}")

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Fields that are set (to more than zero, false or empty) and that no row or rule asked for."""
        for name, value in self._values.items():
            if value and name not in self._read and not name.startswith("_"):
                yield name, value


Rule = Callable[[Fields], Options]


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` is read.

    Attributes:
        fields: our option -> the Hugging Face field, or the names it has had.
        fixed: options that the architecture settles.
        rules: options that depend on more than one field.
        text: family of ``text_config``, in models that have one.
        ignored: fields that this family's models have and do not use.
        framework: whose layers transformers builds; see ``bridge.flops.frameworks``.
    """

    fields: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    text: str = ""
    ignored: tuple[str, ...] = ()
    framework: str = "transformers"

    def but(
        self,
        *rules: Rule,
        fields: Mapping[str, Any] | None = None,
        fixed: Options | None = None,
        ignored: tuple[str, ...] = (),
        text: str = "",
    ) -> Family:
        """A family like this one with more fields, fixed options and rules."""
        return replace(
            self,
            fields={**self.fields, **(fields or {})},
            ignored=self.ignored + ignored,
            text=text or self.text,
            fixed={**self.fixed, **(fixed or {})},
            rules=self.rules + rules,
        )

    def options(self, fields: Fields) -> Options:
        """Our options; those that are not set are left out."""
        names = {option: (source,) if isinstance(source, str) else source for option, source in self.fields.items()}
        found = {option: fields.get(*sources) for option, sources in names.items()}
        fields.get(*self.ignored, "text_config")
        for rule in self.rules:
            found |= rule(fields)
        found |= self.fixed
        return {option: value for option, value in found.items() if value is not None}


# ---- rules ---------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "quick_gelu": "quick_gelu",
}


def _activation(fields: Fields) -> Options:
    return {"activation_func": _ACTIVATIONS.get(fields.get("hidden_act", "hidden_activation", "mlp_hidden_act"))}


def _rope(fields: Fields) -> Options:
    """RoPE's base and reach: in ``rope_parameters`` since transformers 5, one set a layer type where they differ."""
    parameters = fields.get("rope_parameters", "rope_scaling") or {}
    parameters = parameters.get("full_attention") or parameters
    scaled = parameters.get("rope_type", parameters.get("type")) == "llama3"
    return {
        "rotary_base": parameters.get("rope_theta") or fields.get("rope_theta"),
        "rotary_percent": parameters.get("partial_rotary_factor") or fields.get("partial_rotary_factor"),
        "rope_scaling": scaled or None,
        "rope_scaling_factor": parameters.get("factor") if scaled else None,
    }


def _head_size(fields: Fields) -> Options:
    """transformers rounds down where the heads do not divide the width."""
    heads = fields.get("num_attention_heads")
    return {"kv_channels": fields.get("head_dim") or (fields.get("hidden_size") // heads if heads else None)}


def _latent_head_size(fields: Fields) -> Options:
    """With latent attention head_dim is another thing: the part of a key that RoPE turns."""
    return {"kv_channels": fields.get("v_head_dim")}


def _vocabulary(fields: Fields) -> Options:
    """Without tensor parallelism no padding: the largest power of two up to 128 that divides the vocabulary."""
    size = fields.get("vocab_size")
    return {"make_vocab_size_divisible_by": size & -size & 127 or 128} if isinstance(size, int) and size > 0 else {}


def _attention_bias(fields: Fields) -> Options:
    """``attention_bias`` is for q, k, v and o; ``mlp_bias`` for the MLP's matrices."""
    attention, mlp = bool(fields.get("attention_bias")), bool(fields.get("mlp_bias"))
    if attention and mlp:
        return {"add_bias_linear": True}
    if mlp:
        fields.report("mlp_bias", "these bias vectors are missing from the parameter count")
    return {"add_qkv_bias": attention, "add_proj_bias": attention}


def _biases(name: str) -> Rule:
    """The field ``name`` is for all linear layers."""
    return lambda fields: {"add_bias_linear": bool(fields.get(name))}


def _separate_biases(fields: Fields) -> Options:
    """Seed-OSS: fields of their own for the biases of q, k and v and for that of o."""
    if fields.get("mlp_bias"):
        fields.report("mlp_bias", "these bias vectors are missing from the parameter count")
    return {"add_qkv_bias": bool(fields.get("attention_bias")), "add_proj_bias": bool(fields.get("attention_out_bias"))}


def _all_biases(fields: Fields) -> Options:
    """GPT-OSS: biases on everything; ``attention_bias`` speaks of some of them."""
    if not fields.get("attention_bias"):
        fields.report("attention_bias", "the parameter count has the attention's bias vectors nevertheless")
    return {"add_bias_linear": True}


def _qkv_bias(name: str) -> Rule:
    """The field ``name`` is for q, k and v alone."""
    return lambda fields: {"add_qkv_bias": bool(fields.get(name))}


def _head_norm(name: str) -> Rule:
    return lambda fields: {"qk_layernorm": bool(fields.get(name))}


def _bidirectional(fields: Fields) -> Options:
    if not fields.get("use_bidirectional_attention"):
        return {}
    if fields.get("sliding_window"):
        fields.report("use_bidirectional_attention", "local layers are counted as if they looked back only")
    return {"is_causal": False}


def _window(fields: Fields) -> Options:
    """One window for all layers."""
    return {"window_size": fields.get("sliding_window")}


def _optional_window(fields: Fields) -> Options:
    """One window for all layers, if ``use_sliding_window`` says so."""
    window = fields.get("sliding_window")
    return {"window_size": window if fields.get("use_sliding_window") else None}


def _every(pattern: int, name: str = "sliding_window_pattern") -> Callable[[Fields, int], list[bool]]:
    """All layers but each ``pattern``-th are local."""
    return lambda fields, layers: [bool(i % (fields.get(name) or pattern)) for i in range(1, layers + 1)]


def _upper_layers(fields: Fields, layers: int) -> list[bool]:
    """Qwen 2 and 3: from ``max_window_layers`` on, and only where ``use_sliding_window`` says so."""
    first = fields.get("max_window_layers")
    return [bool(fields.get("use_sliding_window")) and i >= first for i in range(layers)]


def _layers_without_rope(fields: Fields, layers: int) -> list[bool]:
    """SmolLM3: each fourth layer has no RoPE, and a window where ``use_sliding_window`` says so."""
    interval = fields.get("no_rope_layer_interval") or 4
    rope = fields.get("no_rope_layers") or [i % interval for i in range(1, layers + 1)]
    return [bool(fields.get("use_sliding_window")) and not flag for flag in rope]


def _lower_odd_layers(fields: Fields, layers: int) -> list[bool]:
    """Qwen 2 MoE: every other layer below ``max_window_layers``."""
    first = fields.get("max_window_layers")
    return [bool(fields.get("use_sliding_window")) and i % 2 == 0 and i < first for i in range(layers)]


def _windows(default: Callable[[Fields, int], list[bool]]) -> Rule:
    """Local layers as ``layer_types`` lists them, or in the family's default pattern."""

    def rule(fields: Fields) -> Options:
        usual = default(fields, fields.get("num_hidden_layers"))
        local = _flags(fields, "layer_types", {"sliding_attention": True, "full_attention": False}) or usual
        window = fields.get("sliding_window")
        if not window or not any(local):
            return {}
        return {"window_size": window, "window_attn_skip_freq": None if all(local) else [int(flag) for flag in local]}

    return rule


def _sparse_layers(fields: Fields) -> list[bool]:
    """Which layers are MoE, in the several ways to say it."""
    layers = fields.get("num_hidden_layers")
    listed = _flags(fields, "mlp_layer_types", {"sparse": True, "dense": False})
    first, dense = fields.get("first_k_dense_replace") or 0, fields.get("mlp_only_layers") or ()
    step, frequency = fields.get("decoder_sparse_step") or 1, fields.get("moe_layer_freq") or 1
    return listed or [i >= first and (i + 1) % step == 0 and i % frequency == 0 and i not in dense for i in range(layers)]


def _chunks(fields: Fields) -> Options:
    """Llama 4: layers with RoPE see their chunk, the others everything."""
    layers, interval = fields.get("num_hidden_layers"), fields.get("no_rope_layer_interval")
    rope = fields.get("no_rope_layers") or [i % interval for i in range(1, layers + 1)]
    local = _flags(fields, "layer_types", {"chunked_attention": True, "full_attention": False}) or [bool(x) for x in rope]
    chunk = fields.get("attention_chunk_size")
    return {"attention_chunk_size": chunk, "no_rope_freq": [int(not flag) for flag in local]} if chunk and any(local) else {}


def _llama4_experts(fields: Fields) -> Options:
    """Dense layers have a width of their own; one shared expert is as wide as a routed one."""
    layers, step, width = (fields.get(name) for name in ("num_hidden_layers", "interleave_moe_layer_step", "intermediate_size"))
    listed = fields.get("moe_layers")
    sparse = set(range(step - 1, layers, step) if listed is None else listed)
    experts = fields.get("num_local_experts", "num_experts")
    routed = {
        "num_moe_experts": experts,
        "moe_layer_freq": [int(i in sparse) for i in range(layers)],
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": width,
        "moe_router_score_function": "sigmoid",
    }
    return {"ffn_hidden_size": fields.get("intermediate_size_mlp"), **(routed if sparse else {})}


def _linear_attention(fields: Fields) -> Options:
    """Gated delta nets with full attention every so many layers (Qwen3-Next)."""
    interval, layers = fields.get("full_attention_interval") or 4, fields.get("num_hidden_layers")
    usual = [bool(i % interval) for i in range(1, layers + 1)]
    linear = _flags(fields, "layer_types", {"linear_attention": True, "full_attention": False}) or usual
    if not any(linear):
        return {}
    names = ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads", "conv_kernel_dim")
    return {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [int(flag) for flag in linear],
        **{f"linear_{name}": fields.get(f"linear_{name}") for name in names},
    }


def _indexer(fields: Fields) -> Options:
    """DeepSeek sparse attention: an indexer picks the keys, in all layers or in those that ``indexer_types`` calls full."""
    full = _flags(fields, "indexer_types", {"full": True, "shared": False})
    if full and not all(full):
        fields.report("indexer_types", "the indexer is counted in every layer")
    names = {"n_heads": "index_n_heads", "head_dim": "index_head_dim", "topk": "index_topk"}
    return {"experimental_attention_variant": "dsa"} | {f"dsa_indexer_{ours}": fields.get(n) for ours, n in names.items()}


_SYMBOLS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _hybrid(fields: Fields) -> Options:
    """Nemotron-H: a kind for each layer, or the same as one symbol each; Mamba-2 beside attention, MLP and MoE layers."""
    kinds = fields.get("layers_block_type", "layer_types")
    pattern = "".join(_SYMBOLS[kind] for kind in kinds) if kinds else fields.get("hybrid_override_pattern") or "ME*-"
    experts = {
        "num_moe_experts": fields.get("n_routed_experts"),
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": fields.get("moe_shared_expert_intermediate_size"),
        "moe_latent_size": fields.get("moe_latent_size"),
    }
    fields.get("n_shared_experts", "num_hidden_layers")
    return {"hybrid_layer_pattern": pattern, "num_layers": len(pattern), **(experts if "E" in pattern else {}), **_mamba(fields)}


def _pure_mamba(fields: Fields) -> Options:
    return {"hybrid_layer_pattern": "M" * fields.get("num_hidden_layers"), "mamba_num_heads": fields.get("num_heads"),
            "mamba_head_dim": fields.get("head_dim"), "kv_channels": None, **_mamba(fields)}  # fmt: skip


def _mamba(fields: Fields) -> Options:
    if fields.get("conv_kernel") != 4:
        fields.report("conv_kernel", "the convolution is counted with 4 taps")
    fields.get("expand", "use_conv_bias")
    return {"is_hybrid_model": True, "mamba_state_dim": fields.get("ssm_state_size", "state_size"),
            "mamba_num_groups": fields.get("n_groups")}  # fmt: skip


def _side_by_side(fields: Fields) -> Options:
    """Falcon-H1: each layer has attention and Mamba side by side, then an MLP."""
    for name in ("mamba_proj_bias", "projectors_bias", "mlp_bias"):
        if fields.get(name):
            fields.report(name, "these bias vectors are missing from the parameter count")
    if not fields.get("mamba_conv_bias"):
        fields.report("mamba_conv_bias", "the parameter count has the convolution's bias vectors nevertheless")
    if fields.get("mamba_d_conv") != 4:
        fields.report("mamba_d_conv", "the convolution is counted with 4 taps")
    heads, layers = fields.get("mamba_n_heads"), fields.get("num_hidden_layers")
    expanded = fields.get("mamba_expand") * fields.get("hidden_size")
    inner = fields.get("mamba_d_ssm") or expanded
    fields.get("mamba_d_head")  # inner // heads, or an error in transformers
    return {
        "is_hybrid_model": True,
        "hybrid_layer_pattern": "P-" * layers,
        "num_layers": 2 * layers,
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "mamba_state_dim": fields.get("mamba_d_state"),
        "mamba_num_groups": fields.get("mamba_n_groups"),
        "mamba_rms_norm": bool(fields.get("mamba_rms_norm")),
        "add_qkv_bias": bool(fields.get("attention_bias")),
        "add_proj_bias": bool(fields.get("attention_bias")),
    }


def _gemma4(fields: Fields) -> Options:
    """Gemma 4: wider heads in global layers, which may use keys as values; the MLP stays beside the experts."""
    listed = fields.get("per_layer_config")
    usual = {"head_dim": fields.get("global_head_dim") or 512, "num_key_value_heads": fields.get("num_global_key_value_heads")}
    layer = usual if listed is None else next(iter(listed.values()), {})
    experts = {
        "num_moe_experts": fields.get("num_experts"),
        "moe_router_topk": fields.get("top_k_experts"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": fields.get("intermediate_size"),
        "moe_branch_norms": True,
    }
    shared = bool(fields.get("attention_k_eq_v"))
    return {
        "global_kv_channels": layer.get("head_dim"),
        "global_num_query_groups": layer.get("num_key_value_heads") if shared else None,
        "global_attention_k_eq_v": shared,
        **(experts if fields.get("enable_moe_block") else {}),
    }


def _experts(fields: Fields) -> Options:
    count, sparse = fields.get("num_local_experts", "num_experts", "n_routed_experts"), _sparse_layers(fields)
    width, shared = fields.get("moe_intermediate_size"), fields.get("n_shared_experts", "num_shared_experts")
    routing = {"moe_router_topk": fields.get("num_experts_per_tok"), "moe_ffn_hidden_size": width}
    together = fields.get("shared_expert_intermediate_size")
    if not count or not any(sparse):
        return {}
    return {
        "num_moe_experts": count,
        "moe_layer_freq": 1 if all(sparse) else [int(flag) for flag in sparse],
        **routing,
        "moe_shared_expert_intermediate_size": together or (shared * width if shared else None),
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
    }


def _group_limited_routing(fields: Fields) -> Options:
    """DeepSeek-V3's router: sigmoid scores, groups of experts, a scale on the routed output."""
    groups = fields.get("n_group") or 1
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_num_groups": groups if groups > 1 else None,
        "moe_router_group_topk": fields.get("topk_group") if groups > 1 else None,
        "moe_router_topk_scaling_factor": fields.get("routed_scaling_factor"),
    }


def _latent_biases(fields: Fields) -> Options:
    if fields.get("attention_bias") or fields.get("mlp_bias"):
        name = "attention_bias" if fields.get("attention_bias") else "mlp_bias"
        fields.report(name, "these bias vectors are missing from the parameter count")
    return {}


def _next_token_depths(fields: Fields) -> Options:
    """transformers builds no multi-token-prediction layers, so they are reported and not assumed."""
    depths = fields.get("num_nextn_predict_layers", "num_mtp_layers")
    if depths:
        remedy = f"transformers does not train these layers; model.mtp_num_layers={depths} counts them"
        fields.report("num_nextn_predict_layers", remedy)
    return {}


def _flags(fields: Fields, name: str, meaning: Mapping[str, bool]) -> list[bool]:
    """A field with one word a layer as flags; empty where it is not set."""
    words: Sequence[str] = fields.get(name) or ()
    for word in words:
        if word not in meaning:
            known = ", ".join(meaning)
            raise ConfigError(f"{fields.place}{name} has {word!r}, which this family cannot have; known are {known}")
    return [meaning[word] for word in words]


def _qwen_tower(width: str = "hidden_size", out: str = "out_hidden_size") -> Rule:
    """A Qwen vision tower, whose width and the width it projects to stand in the fields ``width`` and ``out``."""

    def rule(fields: Fields) -> Options:
        tower = fields.part("vision_config")
        vision = {name: tower.get(name) for name in _TOWER_FIELDS}
        vision["in_channels"] = tower.get("in_channels", "in_chans")
        vision |= {"hidden_size": tower.get(width), "out_hidden_size": tower.get(out)}
        fields.not_counted += unknown(tower)
        return {"vision_config": {name: value for name, value in vision.items() if value is not None}}

    return rule


def _t5(fields: Fields) -> Options:
    """T5: an encoder as deep as the decoder unless told otherwise; ``gated-gelu`` names a gated MLP and its activation."""
    encoder, mlp = fields.get("num_layers", "num_hidden_layers"), fields.get("feed_forward_proj")
    gated, name = mlp.startswith("gated-"), mlp.rsplit("-", 1)[-1]
    fields.get("is_gated_act", "dense_act_fn")  # derived from it
    return {
        "encoder_num_layers": encoder,
        "num_layers": fields.get("num_decoder_layers") or encoder,
        "gated_linear_unit": gated,
        "activation_func": _ACTIVATIONS.get("gelu_new" if mlp == "gated-gelu" else name),
    }


def _mask_token_head(fields: Fields) -> Options:
    """BERT with the head that fills in masked tokens."""
    for name in ("is_decoder", "add_cross_attention"):
        if fields.get(name):
            fields.report(name, "counted as an encoder")
    if not fields.get("tie_word_embeddings"):
        fields.report("tie_word_embeddings", "a second, unused output bias of transformers is missing from the parameter count")
    return {"kv_channels": fields.get("hidden_size") // fields.get("num_attention_heads")}


def _whisper(fields: Fields) -> Options:
    """Whisper: the encoder over mel frames goes by the same names in configurations of its own."""
    names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "max_source_positions")
    audio = {name: fields.get(name) for name in names}
    return {
        "encoder_num_layers": audio["encoder_layers"],
        "audio_config": {name: value for name, value in audio.items() if value is not None},
        "activation_func": _ACTIVATIONS.get(fields.get("activation_function")),
    }


def _plain_tower(fields: Fields, tower: Fields, **more: Any) -> Options:
    """A tower over whole images of one size, with biases, layer norms and a learned table of positions."""
    names = {
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "patch_size": "patch_size",
        "in_channels": "num_channels",
        "projector_input_dim": "projector_input_dim",
        "projector_output_dim": "projector_output_dim",
    }
    vision = {option: tower.get(name) for option, name in names.items()} | {"temporal_patch_size": 1} | more
    tower.get("hidden_act", "layer_norm_eps", "norm_eps")
    if tower is not fields:
        fields.not_counted += tower.not_counted + unknown(tower)
    return {"vision_config": {name: value for name, value in vision.items() if value is not None}}


def _siglip_tower(fields: Fields) -> Options:
    """Gemma 3: SigLIP, averaged down to a fixed number of tokens."""
    tower = fields.part("vision_config")
    side = tower.get("image_size") // tower.get("patch_size")
    if tower.get("vision_use_head"):
        tower.report("vision_use_head", "the pooling head, whose output nothing uses, is not counted")
    return _plain_tower(
        fields,
        tower,
        num_position_embeddings=side**2,
        spatial_merge_size=side // isqrt(fields.get("mm_tokens_per_image")) or 1,  # the default tower is smaller than that
        projector_type="pooled_linear",
    )


def _siglip_alone(tower: Fields) -> Options:
    """SigLIP's vision tower by itself."""
    side = tower.get("image_size") // tower.get("patch_size")
    if tower.get("vision_use_head"):
        tower.report("vision_use_head", "the pooling head is not counted")
    return _plain_tower(tower, tower, num_position_embeddings=side**2, projector_type="none")


def _siglip(fields: Fields) -> Options:
    """SigLIP: its vision tower; the text tower is reported."""
    fields.get("text_config")
    fields.report("text_config", "the text tower is not counted")
    tower = fields.part("vision_config")
    options = _siglip_alone(tower)
    fields.not_counted += tower.not_counted + unknown(tower)
    return options


def _deepseek_v4(fields: Fields) -> Options:
    """DeepSeek-V4: window and compressed attention layer by layer, grouped output projection, hyper-connections."""
    count, width, inner = fields.get("num_hidden_layers"), fields.get("head_dim"), fields.get("moe_intermediate_size")
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128} | (fields.get("compress_rates") or {})
    kinds = fields.get("layer_types")
    # The published files list one ratio a layer, those of multi-token prediction after the others.
    ratios = fields.get("compress_ratios") or [rates.get(kind, 0) for kind in kinds or ()]
    # transformers' default: two layers of the coarse kind, then both in turn.
    ratios = list(ratios)[:count] or [128, 128, *(4 if i % 2 else 128 for i in range(count - 2))][:count]
    hashed = fields.get("mlp_layer_types", "num_hash_layers")
    if hashed != 0 and (not isinstance(hashed, list) or "hash_moe" in hashed):
        fields.report("mlp_layer_types", "layers that route by hash are counted with a router")
    rope = fields.get("qk_rope_head_dim") or round(width * (fields.get("partial_rotary_factor") or 0.125))
    names = {"n_heads": "index_n_heads", "head_dim": "index_head_dim", "topk": "index_topk"}
    return {
        "experimental_attention_variant": "dsv4_hybrid",
        "multi_latent_attention": True,
        "num_query_groups": None,
        "kv_channels": None,
        "ffn_hidden_size": inner,
        "num_moe_experts": fields.get("n_routed_experts", "num_local_experts"),
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": inner,
        "moe_shared_expert_intermediate_size": (fields.get("n_shared_experts") or 0) * inner or None,
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
        "qk_head_dim": width - rope,
        "qk_pos_emb_head_dim": rope,
        "v_head_dim": width,
        "csa_compress_ratios": ratios,
        "csa_window_size": fields.get("sliding_window"),
    } | {f"dsa_indexer_{ours}": fields.get(name) for ours, name in names.items()}


def _llama4_tower(fields: Fields) -> Options:
    """Llama 4: a class token, then patches become channels."""
    tower = fields.part("vision_config")
    side = tower.get("image_size") // tower.get("patch_size")
    tower.get("vision_output_dim", "vision_feature_select_strategy", "projector_dropout")
    return _plain_tower(
        fields,
        tower,
        num_position_embeddings=side**2 + 1,
        spatial_merge_size=round(1 / (tower.get("pixel_shuffle_ratio") or 0.5)),
        class_token=True,
        projector_type="pixel_shuffle",
    )


_TOWER_FIELDS = (
    "depth",
    "intermediate_size",
    "mlp_ratio",
    "hidden_act",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "window_size",
    "fullatt_block_indexes",
    "num_position_embeddings",
    "deepstack_visual_indexes",
)


def _uncounted_tower(fields: Fields) -> Options:
    if fields.get("vision_config"):
        fields.not_counted.append(f"{fields.place}vision_config: the vision tower and its projector are not counted")
    return {}


# ---- the families --------------------------------------------------------------------------------------------------

_DECODER = Family(
    fields={
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "ffn_hidden_size": "intermediate_size",
        "num_attention_heads": "num_attention_heads",
        "num_query_groups": "num_key_value_heads",
        "vocab_size": "vocab_size",
        "share_embeddings_and_output_weights": "tie_word_embeddings",
        "max_position_embeddings": "max_position_embeddings",
        "seq_length": "max_position_embeddings",
        "layernorm_epsilon": ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon"),
        "init_method_std": "initializer_range",
        "attention_dropout": "attention_dropout",
    },
    rules=(_head_size, _vocabulary, _activation, _rope),
)
_SWIGLU = _DECODER.but(fixed={"gated_linear_unit": True})
_LATENT = _SWIGLU.but(
    _latent_head_size,
    _experts,
    _latent_biases,
    fields={
        "q_lora_rank": "q_lora_rank",
        "kv_lora_rank": "kv_lora_rank",
        "qk_head_dim": "qk_nope_head_dim",
        "qk_pos_emb_head_dim": "qk_rope_head_dim",
        "v_head_dim": "v_head_dim",
    },
    fixed={"multi_latent_attention": True, "qk_layernorm": True, "num_query_groups": None},
    ignored=("head_dim", "qk_head_dim", "num_key_value_heads"),
)
_DEEPSEEK_V3 = _LATENT.but(_group_limited_routing, _next_token_depths)
_QWEN3 = _SWIGLU.but(_attention_bias, fixed={"qk_layernorm": True})
_QWEN3_NEXT = _QWEN3.but(_linear_attention, fixed={"attention_output_gate": True})
_GEMMA = _SWIGLU.but(_attention_bias, _bidirectional, fixed={"layernorm_zero_centered_gamma": True})
_OLMO2 = _SWIGLU.but(_attention_bias, fixed={"qk_layernorm": "full", "layernorm_placement": "post"})
_T5 = Family(
    fields={
        "hidden_size": ("d_model", "hidden_size"),
        "kv_channels": ("d_kv", "head_dim"),
        "ffn_hidden_size": "d_ff",
        "num_attention_heads": ("num_heads", "num_attention_heads"),
        "vocab_size": "vocab_size",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "layernorm_epsilon": "layer_norm_epsilon",
    },
    # transformers ties the embeddings whatever the file says of it.
    fixed={"position_embedding_type": "relative", "share_embeddings_and_output_weights": True},
    rules=(_vocabulary, _t5),
    ignored=("relative_attention_max_distance", "scale_decoder_outputs", "tie_word_embeddings", "n_positions",
             "initializer_factor", "dropout_rate"),
)  # fmt: skip
_BERT = Family(
    fields={
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "ffn_hidden_size": "intermediate_size",
        "num_attention_heads": "num_attention_heads",
        "vocab_size": "vocab_size",
        "share_embeddings_and_output_weights": "tie_word_embeddings",
        "max_position_embeddings": "max_position_embeddings",
        "seq_length": "max_position_embeddings",
        "num_tokentypes": "type_vocab_size",
        "layernorm_epsilon": "layer_norm_eps",
        "init_method_std": "initializer_range",
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    fixed={
        "is_causal": False,
        "normalization": "LayerNorm",
        "layernorm_placement": "post",
        "post_layer_norm": False,
        "embedding_layernorm": True,
        "position_embedding_type": "learned_absolute",
        "add_bias_linear": True,
        "bert_lm_head": True,
    },
    rules=(_vocabulary, _activation, _mask_token_head),
    ignored=("position_embedding_type",),
)
_WHISPER = Family(
    fields={
        "num_layers": "decoder_layers",
        "hidden_size": "d_model",
        "ffn_hidden_size": "decoder_ffn_dim",
        "num_attention_heads": "decoder_attention_heads",
        "vocab_size": "vocab_size",
        "share_embeddings_and_output_weights": "tie_word_embeddings",
        "max_position_embeddings": "max_target_positions",
        "seq_length": "max_target_positions",
        "init_method_std": "init_std",
        "attention_dropout": "attention_dropout",
    },
    fixed={
        "normalization": "LayerNorm",
        "add_bias_linear": True,
        "add_key_bias": False,
        "position_embedding_type": "learned_absolute",
    },
    rules=(_vocabulary, _whisper),
    ignored=("num_hidden_layers", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "scale_embedding",
             "use_weighted_layer_sum", "classifier_proj_size", "apply_spec_augment", "median_filter_width",
             "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length",
             "mask_feature_min_masks"),
)  # fmt: skip
_VISION_LANGUAGE = Family(fields={"share_embeddings_and_output_weights": "tie_word_embeddings"})

FAMILIES: dict[str, Family] = {
    "arcee": _DECODER.but(_attention_bias),
    "bert": _BERT,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3.but(_indexer, ignored=("layer_types",)),
    "deepseek_v4": _SWIGLU.but(
        _deepseek_v4,
        _next_token_depths,
        fields={"q_lora_rank": "q_lora_rank", "o_groups": "o_groups", "o_lora_rank": "o_lora_rank", "hc_mult": "hc_mult"},
        ignored=(
            "num_key_value_heads",
            "hc_sinkhorn_iters",
            "hc_eps",
            "compress_rope_theta",
            "scoring_func",
            "norm_topk_prob",
            "swiglu_limit",
            "routed_scaling_factor",
            "attention_bias",
            "mlp_bias",
            "rms_norm_eps",
        ),
    ),
    "ernie4_5": _SWIGLU.but(_biases("use_bias")),
    "exaone4": _QWEN3.but(_windows(_every(4)), fixed={"layernorm_placement": "post"}),
    "exaone_moe": _QWEN3.but(_windows(_every(4)), _experts, _group_limited_routing, _next_token_depths),
    "falcon_h1": _SWIGLU.but(
        _side_by_side,
        ignored=("layers_block_type", "layer_types"),
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA.but(_windows(_every(2)), fixed={"layernorm_placement": "sandwich"}),
    "gemma3": _VISION_LANGUAGE.but(_siglip_tower, text="gemma3_text"),
    "gemma3_text": _GEMMA.but(_windows(_every(6)), fixed={"layernorm_placement": "sandwich", "qk_layernorm": True}),
    "gemma4": _VISION_LANGUAGE.but(_uncounted_tower, text="gemma4_text"),
    "gemma4_text": _GEMMA.but(
        _windows(_every(6)),
        _gemma4,
        fields={
            "num_kv_shared_layers": "num_kv_shared_layers",
            "use_double_wide_mlp": "use_double_wide_mlp",
            "hidden_size_per_layer_input": "hidden_size_per_layer_input",
            "vocab_size_per_layer_input": "vocab_size_per_layer_input",
        },
        fixed={"layernorm_placement": "sandwich", "qk_layernorm": True},
    ),
    "glm4": _SWIGLU.but(_qkv_bias("attention_bias"), fixed={"layernorm_placement": "sandwich"}),
    "glm4_moe": _SWIGLU.but(
        _experts, _group_limited_routing, _qkv_bias("attention_bias"), _head_norm("use_qk_norm"), _next_token_depths
    ),
    "glm_moe_dsa": _DEEPSEEK_V3.but(_indexer, ignored=("layer_types",)),
    "gpt_oss": _SWIGLU.but(
        _windows(_every(2)),
        _experts,
        _all_biases,
        fields={"activation_func_clamp_value": "swiglu_limit"},
        fixed={"softmax_type": "learnable", "activation_func": "quick_gelu", "glu_linear_offset": 1.0},
    ),
    "granite": _SWIGLU.but(_attention_bias),
    "granitemoe": _SWIGLU.but(_attention_bias, _experts),
    "hunyuan_v1_dense": _QWEN3,
    "kimi_k2": _DEEPSEEK_V3,
    "llama": _SWIGLU.but(_attention_bias),
    "llama4": _VISION_LANGUAGE.but(_llama4_tower, text="llama4_text"),
    "llama4_text": _SWIGLU.but(_attention_bias, _chunks, _llama4_experts, ignored=("use_qk_norm",)),
    "mamba2": _DECODER.but(_pure_mamba, ignored=("time_step_rank",)),
    "mimo": _SWIGLU.but(_windows(_upper_layers), _next_token_depths, fixed={"add_qkv_bias": True}),
    "minimax_m2": _SWIGLU.but(_experts, fixed={"qk_layernorm": "full", "moe_router_score_function": "sigmoid"}),
    "ministral3": _SWIGLU.but(_window),
    "mistral": _SWIGLU.but(_window),
    "mistral3": _VISION_LANGUAGE.but(
        _uncounted_tower, text="mistral", ignored=("projector_hidden_act", "vision_feature_layer", "spatial_merge_size")
    ),
    "mixtral": _SWIGLU.but(_window, _experts),
    "nemotron": _DECODER.but(_attention_bias, fixed={"normalization": "LayerNorm"}),
    "nemotron_h": _DECODER.but(
        _hybrid,
        _attention_bias,
        _next_token_depths,
        fields={"mamba_num_heads": "mamba_num_heads", "mamba_head_dim": "mamba_head_dim"},
        fixed={"share_embeddings_and_output_weights": False},
        ignored=("mtp_layers_block_type", "mtp_hybrid_override_pattern"),
    ),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2.but(_windows(_every(4))),
    "olmoe": _SWIGLU.but(_attention_bias, _experts, fixed={"qk_layernorm": "full"}),
    "phi3": replace(_SWIGLU.but(_window), framework="transformers_fused"),
    "qwen2": _SWIGLU.but(_windows(_upper_layers), fixed={"add_qkv_bias": True}),
    "qwen2_5_vl": _VISION_LANGUAGE.but(_qwen_tower(), text="qwen2_5_vl_text"),
    "qwen2_5_vl_text": _SWIGLU.but(_windows(_upper_layers), fixed={"add_qkv_bias": True}),
    "qwen2_moe": _SWIGLU.but(
        _windows(_lower_odd_layers), _experts, _qkv_bias("qkv_bias"), fixed={"moe_shared_expert_gate": True}
    ),
    "qwen2_vl": _VISION_LANGUAGE.but(_qwen_tower("embed_dim", "hidden_size"), text="qwen2_vl_text"),
    "qwen2_vl_text": _SWIGLU.but(_windows(_upper_layers), fixed={"add_qkv_bias": True}),
    "qwen3": _QWEN3.but(_windows(_upper_layers)),
    "qwen3_5": _VISION_LANGUAGE.but(_qwen_tower(), text="qwen3_5_text"),
    "qwen3_5_moe": _VISION_LANGUAGE.but(_qwen_tower(), text="qwen3_5_moe_text"),
    "qwen3_5_moe_text": _QWEN3_NEXT.but(_experts, fixed={"moe_shared_expert_gate": True}),
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_moe": _QWEN3.but(_optional_window, _experts),
    "qwen3_next": _QWEN3_NEXT.but(_experts, fixed={"moe_shared_expert_gate": True}),
    "qwen3_vl": _VISION_LANGUAGE.but(_qwen_tower(), text="qwen3_vl_text"),
    "qwen3_vl_moe": _VISION_LANGUAGE.but(_qwen_tower(), text="qwen3_vl_moe_text"),
    "qwen3_vl_moe_text": _QWEN3.but(_experts),
    "qwen3_vl_text": _QWEN3,
    "seed_oss": _SWIGLU.but(_separate_biases),
    "smollm3": _SWIGLU.but(_windows(_layers_without_rope), _attention_bias),
    "solar_open": _SWIGLU.but(_experts, _group_limited_routing, _qkv_bias("attention_bias"), _head_norm("use_qk_norm")),
    "starcoder2": _DECODER.but(_window, _biases("use_bias"), fixed={"normalization": "LayerNorm"}),
    "siglip": Family(rules=(_siglip,), ignored=("initializer_factor",)),
    "siglip_vision_model": Family(rules=(_siglip_alone,)),
    "t5": _T5,
    "whisper": _WHISPER,
}

# ---- what changes neither the work nor the parameters -----------------------------------------------------------------

_OF_TRANSFORMERS = """
    model_type architectures transformers_version dtype torch_dtype auto_map id2label label2id problem_type
    return_dict output_attentions output_hidden_states output_router_logits use_cache is_encoder_decoder
    chunk_size_feed_forward tokenizer_class unsloth_version unsloth_fixed"""
_GENERATION = """
    temperature top_k top_p do_sample max_length repetition_penalty num_beams cache_implementation initial_context_length
    suppress_tokens begin_suppress_tokens forced_decoder_ids task_specific_params"""
_POSITIONS = """
    rope_theta rope_scaling rope_parameters rope_local_base_freq rope_interleave partial_rotary_factor
    original_max_position_embeddings use_mrope attn_temperature_tuning attn_scale floor_scale"""
_ELEMENTWISE = """
    initializer_range hidden_dropout resid_pdrop embd_pdrop residual_dropout embedding_dropout dropout
    classifier_dropout query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping logits_scaling
    attention_multiplier embedding_multiplier residual_multiplier logit_scale clip_qkv swiglu_limit
    swiglu_alpha norm_topk_prob routed_scaling_factor scoring_func topk_method n_group topk_group
    aux_loss_alpha seq_aux router_aux_loss_coef router_jitter_noise input_jitter_noise"""
_MAMBA = """
    use_mamba_kernels mamba_hidden_act time_step_min time_step_max time_step_limit time_step_floor chunk_size
    mamba_chunk_size mamba_norm_before_gate lm_head_multiplier embedding_multiplier mlp_multipliers key_multiplier
    attention_out_multiplier attention_in_multiplier ssm_multipliers ssm_in_multiplier ssm_out_multiplier
    mamba_ssm_cache_dtype rescale_prenorm_residual residual_in_fp32 num_logits_to_keep moe_shared_expert_overlap"""
_STORAGE = """
    quantization_config pretraining_tp ep_size experts_per_token tokens_per_second num_heads"""

IRRELEVANT = frozenset(" ".join((_OF_TRANSFORMERS, _GENERATION, _POSITIONS, _ELEMENTWISE, _MAMBA, _STORAGE)).split())


def unknown(fields: Fields) -> list[str]:
    """Sentences about fields that are set, that nobody read and that are not known to be irrelevant."""
    return [
        f"{fields.place}{name}={_short(value)}: not known in this family; if it changes the work, that is not counted"
        for name, value in fields.unread()
        if name not in IRRELEVANT and not name.endswith(("_token_id", "_token_index"))
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
