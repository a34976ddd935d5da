"""How each Hugging Face ``model_type`` is read: one row per family.

A row maps our options to Hugging Face fields and lists the options that the architecture settles; options that need more than
another name have a rule.  What transformers assumes where a ``config.json`` is silent is in ``huggingface_defaults.json``.

Source: the ``configuration_*.py`` and ``modeling_*.py`` files of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from bridge.config.sources.huggingface_fields import INDEXES, Fields
from bridge.flops.shapes import ConfigError, short

Options = dict[str, Any]
Rule = Callable[[Fields], Options]
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` is read.

    Attributes:
        fields: our option -> the Hugging Face field, or the names it has had.
        fixed: options that the architecture settles.
        rules: options that depend on more than one field.
        text: family of ``text_config``, in models that have one.
        ignored: fields that this family's files have and that transformers' classes of it do not use.
        framework: whose layers transformers builds; see ``bridge.flops.frameworks``.
        inner: it occurs only inside other configurations; alone, transformers builds it without an output layer.
    """

    fields: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    text: str = ""
    ignored: str = ""
    framework: str = "transformers"
    inner: bool = False

    def plus(
        self,
        *rules: Rule,
        fields: Mapping[str, Any] = _NOTHING,
        fixed: Mapping[str, Any] = _NOTHING,
        ignored: str = "",
        **others: Any,
    ) -> Family:
        """A family like this one with more rules, fields, fixed options and ignored fields, and with other attributes instead."""
        return replace(
            self,
            fields={**self.fields, **fields},
            fixed={**self.fixed, **fixed},
            rules=self.rules + rules,
            ignored=f"{self.ignored} {ignored}",
            **others,
        )

    def options(self, fields: Fields) -> Options:
        """Our options; those that are not set are left out."""
        names = {option: (source,) if isinstance(source, str) else source for option, source in self.fields.items()}
        found = {option: fields.get(*sources) for option, sources in names.items()}
        fields.skip(*self.ignored.split(), "text_config")
        for rule in self.rules:
            found |= rule(fields)
        found |= self.fixed
        return _set(found)


# ---- rules ---------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "xielu": "xielu",
    "quick_gelu": "quick_gelu",
}


def _activation(fields: Fields) -> Options:
    return {"activation_func": _ACTIVATIONS.get(fields.get("hidden_act", "hidden_activation", "mlp_hidden_act"))}


def _activation_in(name: str) -> Rule:
    """The activation is in the field ``name``."""
    return lambda fields: {"activation_func": _ACTIVATIONS.get(fields.get(name))}


def _rope(fields: Fields) -> Options:
    """RoPE's base and reach: in ``rope_parameters`` since transformers 5, one set per layer type where they differ."""
    rope = fields.group("rope_parameters", "rope_scaling")
    rope = rope.group("full_attention") if rope.get("full_attention") else rope
    scaled = rope.get("rope_type", "type") == "llama3"
    return {
        "rotary_base": rope.get("rope_theta") or fields.get("rope_theta"),
        "rotary_percent": rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor"),
        "rope_scaling": scaled or None,
        "rope_scaling_factor": rope.get("factor") if scaled else None,
    }


def _head_size(fields: Fields) -> Options:
    """transformers rounds down where the heads do not divide the width."""
    heads = fields.get("num_attention_heads")
    return {"kv_channels": fields.get("head_dim") or (fields.size("hidden_size") // heads if heads else None)}


def _latent_head_size(fields: Fields) -> Options:
    """With latent attention ``head_dim`` is the part of a key that RoPE rotates; a head is as wide as its values."""
    return {"kv_channels": fields.get("v_head_dim")}


def _vocabulary(fields: Fields) -> Options:
    """Without tensor parallelism no padding: the largest power of two up to 128 that divides the vocabulary."""
    size = fields.size("vocab_size")
    return {"make_vocab_size_divisible_by": size & -size & 127 or 128}


def _flag(name: str, *options: str) -> Rule:
    """These options are true where the field ``name`` is."""
    return lambda fields: dict.fromkeys(options, bool(fields.get(name)))


_attention_bias = _flag("attention_bias", "add_qkv_bias", "add_proj_bias")
_mlp_bias = _flag("mlp_bias", "add_mlp_bias")


def _full_norm(name: str) -> Rule:
    """The field ``name``: a norm whose weights differ from head to head, as many as the whole projection is wide."""
    return lambda fields: {"qk_layernorm": "full" if fields.get(name) else False}


def _placed(placement: str, name: str) -> Rule:
    """Norms are placed like this where the field ``name`` is true, and before each block where it is not."""
    return lambda fields: {"layernorm_placement": placement if fields.get(name) else "pre"}


def _bidirectional(fields: Fields) -> Options:
    # Gemma 3 says true; Gemma 4 "all", or "vision" for the tokens of images alone.
    if fields.get("use_bidirectional_attention") not in (True, "all"):
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


#: Words of layers -> whether they are local, have experts, or have linear attention.
_LOCAL = {"sliding_attention": True, "full_attention": False}
_SPARSE = {"sparse": True, "dense": False}
_LINEAR = {"linear_attention": True, "full_attention": False}


def _every(pattern: int) -> Callable[[Fields, int], list[bool]]:
    """All layers but each ``pattern``-th are local."""

    def local(fields: Fields, layers: int) -> list[bool]:
        given = fields.get("sliding_window_pattern") or pattern
        if isinstance(given, str):  # EXAONE 4: L for local, G for global, repeated
            return [given[i % len(given)] == "L" for i in range(layers)]
        return [bool(i % given) for i in range(1, layers + 1)]

    return local


def _upper_layers(fields: Fields, layers: int) -> list[bool]:
    """Qwen 2 and 3: from ``max_window_layers`` on, and only where ``use_sliding_window`` says so."""
    first = fields.get("max_window_layers") or 0
    return [bool(fields.get("use_sliding_window")) and i >= first for i in range(layers)]


def _layers_without_rope(fields: Fields, layers: int) -> list[bool]:
    """SmolLM3: each fourth layer has no RoPE, and a window where ``use_sliding_window`` says so."""
    interval = fields.get("no_rope_layer_interval") or 4
    rope = fields.get("no_rope_layers") or [i % interval for i in range(1, layers + 1)]
    return [bool(fields.get("use_sliding_window")) and not flag for flag in rope]


def _layers_from_max_window_layers(fields: Fields, layers: int) -> list[bool]:
    """dots.llm1: from ``max_window_layers`` on, whatever ``use_sliding_window`` says."""
    first = fields.get("max_window_layers") or 0
    return [i >= first for i in range(layers)]


def _all_layers(fields: Fields, layers: int) -> list[bool]:
    return [True] * layers


def _all_but_each_fourth(fields: Fields, layers: int) -> list[bool]:
    """Granite with windows, CWM: the first layer and each fourth after it are global."""
    return [bool(i % 4) for i in range(layers)]


def _lower_odd_layers(fields: Fields, layers: int) -> list[bool]:
    """Qwen 2 MoE: every other layer below ``max_window_layers``."""
    first = fields.get("max_window_layers") or 0
    return [bool(fields.get("use_sliding_window")) and i % 2 == 0 and i < first for i in range(layers)]


def _windows(default: Callable[[Fields, int], list[bool]], *, last_is_global: bool = False) -> Rule:
    """Local layers as ``layer_types`` lists them, or in the family's default pattern; ``last_is_global`` whatever either says."""

    def rule(fields: Fields) -> Options:
        usual = default(fields, fields.size("num_hidden_layers"))
        local = _flags(fields, "layer_types", _LOCAL) or usual
        if last_is_global:
            local = [*local[:-1], False]
        window = fields.get("sliding_window")
        if not window or not any(local):
            return {}
        return {"window_size": window, "window_attn_skip_freq": None if all(local) else [int(flag) for flag in local]}

    return rule


def _sparse_layers(fields: Fields) -> list[bool]:
    """Which layers have experts, by any of the fields that say so."""
    layers = fields.size("num_hidden_layers")
    listed = _flags(fields, "mlp_layer_types", _SPARSE)
    first, dense = fields.get("first_k_dense_replace") or 0, frozenset(fields.get("mlp_only_layers") or ())
    step, frequency = fields.get("decoder_sparse_step") or 1, fields.get("moe_layer_freq") or 1
    if not isinstance(frequency, int):
        return listed or [bool(flag) for flag in frequency]
    return listed or [i >= first and (i + 1) % step == 0 and i % frequency == 0 and i not in dense for i in range(layers)]


def _chunks(fields: Fields) -> Options:
    """Llama 4: layers with RoPE see their chunk, the others everything."""
    layers, interval = fields.size("num_hidden_layers"), fields.get("no_rope_layer_interval") or 4
    rope = fields.get("no_rope_layers") or [i % interval for i in range(1, layers + 1)]
    local = _flags(fields, "layer_types", {"chunked_attention": True, "full_attention": False}) or [bool(x) for x in rope]
    chunk = fields.get("attention_chunk_size")
    return {"attention_chunk_size": chunk, "no_rope_freq": [int(not flag) for flag in local]} if chunk and any(local) else {}


def _llama4_experts(fields: Fields) -> Options:
    """Dense layers have a width of their own; one shared expert is as wide as a routed one."""
    layers, width, listed = fields.size("num_hidden_layers"), fields.get("intermediate_size"), fields.get("moe_layers")
    step = fields.get("interleave_moe_layer_step") or 1
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
    return {"ffn_hidden_size": fields.get("intermediate_size_mlp"), **(routed if sparse and experts else {})}


def _linear_attention(fields: Fields) -> Options:
    """Gated delta nets with full attention every so many layers (Qwen3-Next)."""
    interval, layers = fields.get("full_attention_interval") or 4, fields.size("num_hidden_layers")
    usual = [bool(i % interval) for i in range(1, layers + 1)]
    linear = _flags(fields, "layer_types", _LINEAR) or usual
    if not any(linear):
        return {}
    names = ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads", "conv_kernel_dim")
    return {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [int(flag) for flag in linear],
        **{f"linear_{name}": fields.get(f"linear_{name}") for name in names},
    }


def _indexer(fields: Fields) -> Options:
    """DeepSeek sparse attention: an indexer picks the keys of every layer."""
    return {"experimental_attention_variant": "dsa"} | _indexer_sizes(fields)


def _indexer_sizes(fields: Fields) -> Options:
    return {f"dsa_indexer_{name}": fields.get(f"index_{name}") for name in ("n_heads", "head_dim", "topk")}


def _shared_indexer(fields: Fields) -> Options:
    """GLM-5.2: layers that share take the choice of the last full layer; by word, by letter, or in turns."""
    words, pattern = _flags(fields, "indexer_types", _INDEXERS), _flags(fields, "index_topk_pattern", _INDEXERS)
    offset, turns = fields.get("index_skip_topk_offset"), max(fields.get("index_topk_freq") or 1, 1)
    first = 2 if offset is None else offset
    in_turns = [max(i - first + 1, 0) % turns == 0 for i in range(fields.size("num_hidden_layers"))]
    return {"dsa_indexer_layers": [int(full) for full in words or pattern or in_turns]}


_INDEXERS = {"full": True, "shared": False, "F": True, "S": False}
_MIXERS = ("mamba", "attention", "linear_attention", "full_attention")
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
    pattern = "".join(_words(fields, "layers_block_type", kinds, _SYMBOLS)) or fields.get("hybrid_override_pattern") or "ME*-"
    experts = {
        "num_moe_experts": fields.get("n_routed_experts"),
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": fields.get("moe_shared_expert_intermediate_size"),
        "moe_latent_size": fields.get("moe_latent_size"),
    }
    _report_biases(fields, "mlp_bias")
    return {"hybrid_layer_pattern": pattern, "num_layers": len(pattern), **(experts if "E" in pattern else {})}


def _pure_mamba(fields: Fields) -> Options:
    return {"hybrid_layer_pattern": "M" * fields.size("num_hidden_layers"), "mamba_num_heads": fields.get("num_heads")}


def _uncounted_of_mamba(fields: Fields) -> Options:
    if fields.get("conv_kernel") != 4:
        fields.report("conv_kernel", "the convolution is counted with 4 taps")
    if fields.get("use_bias"):
        fields.report("use_bias", "the bias vectors of Mamba layers are missing from the parameter count")
    return {}


def _side_by_side(fields: Fields) -> Options:
    """Falcon-H1: each layer has attention and Mamba side by side, then an MLP."""
    layers = fields.size("num_hidden_layers")
    return {
        "hybrid_layer_pattern": "P-" * layers,
        "num_layers": 2 * layers,
        "mamba_rms_norm": bool(fields.get("mamba_rms_norm")),
        **_mamba2(fields, fields.get("mamba_d_ssm")),
        **_attention_bias(fields),
        **_mlp_bias(fields),
    }


def _bamba(fields: Fields) -> Options:
    """Bamba: Mamba-2 or, in the layers that are listed, attention; then an MLP."""
    layers, attention = fields.size("num_hidden_layers"), fields.get("attn_layer_indices") or ()
    mixers = ["*" if i in attention else "M" for i in range(layers)]
    return {"hybrid_layer_pattern": "".join(f"{mixer}-" for mixer in mixers), "num_layers": 2 * layers, **_mamba2(fields)}


def _granite_hybrid(fields: Fields) -> Options:
    """Granite 4: Mamba-2 or attention; then experts with a shared one, or that one alone."""
    layers, experts = fields.size("num_hidden_layers"), fields.get("num_local_experts")
    kinds = fields.get("layer_types", "layers_block_type") or ["linear_attention"] * layers
    mixers = _words(fields, "layer_types", kinds, {name: _SYMBOLS[name] for name in _MIXERS})
    width, block = fields.get("shared_intermediate_size"), "E" if experts else "-"
    routed = {
        "num_moe_experts": experts,
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("intermediate_size"),
        "moe_shared_expert_intermediate_size": width,
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
    }
    return {
        "hybrid_layer_pattern": "".join(f"{mixer}{block}" for mixer in mixers),
        "num_layers": 2 * layers,
        "ffn_hidden_size": width,
        "position_embedding_type": "rope" if fields.get("position_embedding_type") == "rope" else "none",
        **(routed if experts else {}),
        **_mamba2(fields),
    }


def _mamba2(fields: Fields, inner: int | None = None) -> Options:
    """Mamba-2 of the width ``inner``, by the names that Falcon-H1, Bamba and Granite have for it."""
    _report_biases(fields, "mamba_proj_bias", "projectors_bias")
    if not fields.get("mamba_conv_bias"):
        fields.report("mamba_conv_bias", "the parameter count has the convolution's bias vectors nevertheless")
    if fields.get("mamba_d_conv") != 4:
        fields.report("mamba_d_conv", "the convolution is counted with 4 taps")
    heads, expanded = fields.size("mamba_n_heads"), fields.size("mamba_expand") * fields.size("hidden_size")
    fields.skip("mamba_d_head")  # inner // heads, or an error in transformers
    return {
        "is_hybrid_model": True,
        "mamba_num_heads": heads,
        "mamba_head_dim": (inner or expanded) // heads,
        "mamba_state_dim": fields.get("mamba_d_state"),
        "mamba_num_groups": fields.get("mamba_n_groups"),
    }


def _jamba(fields: Fields) -> Options:
    """Jamba: Mamba's first generation, attention and experts every so many layers; no positions."""
    layers, experts = range(fields.size("num_hidden_layers")), fields.get("num_experts", "num_local_experts") or 1
    (mixes, first), (each, start) = (
        (fields.size(f"{name}_layer_period"), fields.get(f"{name}_layer_offset") or 0) for name in ("attn", "expert")
    )
    width, rank = fields.size("hidden_size"), fields.get("mamba_dt_rank")
    fields.skip("layers_block_type", "layer_types", "layers_num_experts", "use_mambapy", "use_associative_scan")
    routed = {
        "num_moe_experts": experts,
        "moe_layer_freq": [int(i % each == start) for i in layers],
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("intermediate_size"),
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
    }
    return {
        "selective_scan_layers": [int(i % mixes != first) for i in layers],
        "selective_scan_inner_size": fields.size("mamba_expand") * width,
        "selective_scan_state_dim": fields.get("mamba_d_state"),
        "selective_scan_dt_rank": -(-width // 16) if rank == "auto" else rank or fields.size("mamba_dt_rank"),
        "selective_scan_kernel": fields.get("mamba_d_conv"),
        "selective_scan_conv_bias": bool(fields.get("mamba_conv_bias")),
        "selective_scan_proj_bias": bool(fields.get("mamba_proj_bias")),
        **(routed if experts > 1 and any(routed["moe_layer_freq"]) else {}),
    }


def _lfm2(fields: Fields) -> Options:
    """LFM2: short convolutions, with attention in between."""
    layers, listed = fields.size("num_hidden_layers"), fields.get("full_attn_idxs")
    kinds = _flags(fields, "layer_types", {"conv": True, "full_attention": False})
    convolved = kinds or [listed is not None and i not in listed for i in range(layers)]
    found = {"short_conv_kernel": fields.get("conv_L_cache"), "short_conv_bias": bool(fields.get("conv_bias"))}
    return {"short_conv_layers": [int(flag) for flag in convolved], **found} if any(convolved) else {}


def _lfm2_width(fields: Fields) -> Options:
    """LFM2's own rounding of its MLP's width."""
    width = fields.size("block_ff_dim", "intermediate_size")
    # Silence is 1, which rounds; null does not.
    factor = fields.mentioned("block_ffn_dim_multiplier").get("block_ffn_dim_multiplier", 1.0)
    multiple = fields.get("block_multiple_of") or 1
    if fields.get("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        width = width if factor is None else -(-int(factor * width) // multiple) * multiple
    return {"ffn_hidden_size": width}


def _lfm2_experts(fields: Fields) -> Options:
    """LFM2 with experts in all but the first layers."""
    if fields.get("layer_types") is None:
        fields.report("layer_types", "all layers are counted as attention; transformers cannot build a model without the list")
    dense, layers = fields.get("num_dense_layers") or 0, fields.size("num_hidden_layers")
    fields.skip("use_expert_bias")
    routed = {
        "num_moe_experts": fields.size("num_experts"),
        "moe_layer_freq": [int(i >= dense) for i in range(layers)],
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
        "moe_router_score_function": "sigmoid",
    }
    return routed if dense < layers else {}


def _mimo_v2(fields: Fields) -> Options:
    """MiMo-V2: layers with a window have twice the key heads, and sinks; values are narrower than keys."""
    layers, groups, previous = fields.size("num_hidden_layers"), fields.size("num_key_value_heads"), "sliding_window_size"
    usual = [bool(i and (i + 1) % 6) for i in range(layers)]
    local = _flags(fields, "layer_types", _LOCAL) or usual
    sparse = _flags(fields, "mlp_layer_types", _SPARSE) or [i > 0 for i in range(layers)]
    heads, size, values = (fields.get(name) for name in ("num_attention_heads", "head_dim", "v_head_dim"))
    # The published files have fields of their own code beside these, which transformers does not look at.
    fields.expect("hybrid_layer_pattern", [*map(int, local)])
    fields.expect("moe_layer_freq", [*map(int, sparse)])
    fields.expect("swa_num_attention_heads", heads)
    fields.expect("swa_num_key_value_heads", 2 * groups)
    fields.expect("swa_head_dim", size)
    fields.expect("swa_v_head_dim", values)
    fields.expect("add_swa_attention_sink_bias", True)
    fields.expect("add_full_attention_sink_bias", False)
    # The window in the published files leaves out the query.
    window = fields.get(previous) + 1 if fields.get(previous) else fields.get("sliding_window")
    fields.skip("attention_chunk_size", "attention_value_scale", "swa_rope_theta")
    windows = {
        "window_size": window,
        "window_attn_skip_freq": [*map(int, local)],
        "num_query_groups": 2 * groups,
        "global_num_query_groups": groups,
        "softmax_type": "learnable_local",
    }
    routed = {
        "num_moe_experts": fields.get("n_routed_experts", "num_local_experts"),
        "moe_layer_freq": [*map(int, sparse)],
        "moe_router_topk": fields.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
    }
    return {
        "v_channels": values,
        "add_qkv_bias": bool(fields.get("attention_bias")),
        **(windows if any(local) else {}),
        **(routed if any(sparse) else {}),
    }


def _blocks(fields: Fields) -> Options:
    """Nemotron Super and Ultra: blocks that differ from layer to layer."""
    blocks = fields.get("block_configs")
    read = {
        "attention": {"n_heads_in_group", "no_op", "replace_with_linear"},
        "ffn": {"ffn_mult", "no_op", "replace_with_linear"},
    }
    for part, known in read.items():
        parts = [block.get(part) for block in blocks or ()]
        others = {name for one in parts if isinstance(one, Mapping) for name, value in one.items() if value} - known
        if others:
            fields.report("block_configs", f"{', '.join(sorted(others))} of its {part} blocks is counted as if it were not there")
    return {"block_configs": blocks and [dict(block) for block in blocks]}


def _gemma4(fields: Fields) -> Options:
    """Gemma 4: wider heads in global layers, which may use keys as values; the MLP stays beside the experts."""
    listed = fields.get("per_layer_config")
    width, groups = fields.get("global_head_dim") or 512, fields.get("num_global_key_value_heads")
    if listed is not None:  # transformers writes what differs, for each global layer the same
        layer = fields.group("per_layer_config").group(next(iter(listed), ""))
        width, groups = layer.get("head_dim"), layer.get("num_key_value_heads")
    experts = {
        "num_moe_experts": fields.get("num_experts"),
        "moe_router_topk": fields.get("top_k_experts"),
        "moe_ffn_hidden_size": fields.get("moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": fields.get("intermediate_size"),
        "moe_branch_norms": True,
    }
    shared = bool(fields.get("attention_k_eq_v"))
    return {
        "global_kv_channels": width,
        "global_num_query_groups": groups if shared else None,
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
        "moe_shared_expert_intermediate_size": shared * width if together is None and shared and width else together,
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
    }


def _shared_width(fields: Fields) -> Options:
    """Granite: the shared expert's width, 0 for none."""
    return {"moe_shared_expert_intermediate_size": fields.get("shared_intermediate_size") or None}


def _first_layer_dense(fields: Fields) -> Options:
    """GLM-4.7-Flash, Hunyuan 3: where ``mlp_layer_types`` is missing, all layers but the first have experts."""
    fields.skip("first_k_dense_replace", "moe_layer_freq")
    listed = _flags(fields, "mlp_layer_types", _SPARSE)
    sparse = listed or [i > 0 for i in range(fields.size("num_hidden_layers"))]
    return {"moe_layer_freq": [int(flag) for flag in sparse]}


def _kimi_linear(fields: Fields) -> Options:
    """Kimi Linear: delta rules, with latent attention in between; the published files have names and an object of their own."""
    layers, given = fields.size("num_hidden_layers"), fields.group("linear_attn_config")
    kinds = _flags(fields, "layer_types", _LINEAR)
    listed, _ = given.get("kda_layers", kind=INDEXES), given.get("full_attn_layers", kind=INDEXES)
    usual = [number for number in range(1, layers + 1) if number == 1 or (number - 1) % 4]
    named = [number for number, delta in enumerate(kinds, 1) if delta] if kinds else listed
    sparse = _flags(fields, "mlp_layer_types", _SPARSE)
    dense = fields.get("first_k_dense_replace")
    return {
        "kimi_kda_layers": usual if named is None else named,
        "kimi_linear_num_heads": given.get("num_heads") or fields.get("linear_num_heads"),
        "kimi_linear_head_dim": given.get("head_dim") or fields.get("linear_head_dim"),
        "kimi_linear_conv_kernel_size": given.get("short_conv_kernel_size") or fields.get("linear_conv_kernel_dim"),
        "kimi_linear_low_rank_gate": True,
        "moe_layer_freq": [int(i >= (1 if dense is None else dense)) for i in range(layers)]
        if not sparse
        else [*map(int, sparse)],
        "moe_router_topk": fields.get("num_experts_per_tok", "num_experts_per_token"),
    }


def _value_heads(fields: Fields) -> Options:
    """MiniCPM3: value heads as wide as the residual stream allows, unless ``v_head_dim`` is set."""
    width = fields.get("v_head_dim") or fields.size("hidden_size") // fields.size("num_attention_heads")
    return {"v_head_dim": width, "kv_channels": width}


def _internlm3(fields: Fields) -> Options:
    """InternLM3: Llama with other names for its biases."""
    attention = bool(fields.get("attention_bias", "qkv_bias"))
    return {"add_qkv_bias": attention, "add_proj_bias": attention, "add_mlp_bias": bool(fields.get("mlp_bias", "bias"))}


def _ernie_experts(fields: Fields) -> Options:
    """ERNIE 4.5: experts from one layer to another, in every so many; each has a correction bias."""
    layers, interval = fields.size("num_hidden_layers"), fields.get("moe_layer_interval") or 1
    first, last, width = (fields.get(f"moe_{name}") for name in ("layer_start_index", "layer_end_index", "intermediate_size"))
    end = layers - 1 if last in (None, -1) else last
    sparse = [(i + 1) % interval == 0 and (first or 0) <= i <= end for i in range(layers)]
    experts = fields.get("moe_num_experts", "num_experts")
    if fields.get("use_bias"):
        fields.report("use_bias", "the bias vectors of MLPs and shared experts are missing from the parameter count")
    return {
        "add_qkv_bias": bool(fields.get("use_bias")),
        "add_proj_bias": bool(fields.get("use_bias")),
        "add_output_bias": bool(fields.get("use_bias")),
        "num_moe_experts": experts if any(sparse) else None,
        "moe_layer_freq": [int(flag) for flag in sparse],
        "moe_router_topk": fields.get("moe_k", "num_experts_per_tok"),
        "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": (fields.get("moe_num_shared_experts") or 0) * (width or 0) or None,
        "moe_router_enable_expert_bias": True,
        "moe_aux_loss_coeff": fields.get("router_aux_loss_coef"),
    }


def _unbiased_experts(fields: Fields) -> Options:
    """Hunyuan 3: ``mlp_bias`` gives biases to dense MLPs and shared experts, and none to the routed experts."""
    _report_biases(fields, "mlp_bias")
    return {}


def _report_biases(fields: Fields, *names: str) -> None:
    """Those of these fields that are true give biases to layers whose parameters are counted without."""
    for name in filter(fields.get, names):
        fields.report(name, "these bias vectors are missing from the parameter count")


def _uncounted_head_norms(fields: Fields) -> Options:
    """StableLM: the norms of heads have no bias."""
    if fields.get("qk_layernorm"):
        fields.report("qk_layernorm", "the norms of the heads are missing from the parameter count")
    return {}


def _equal_heads(fields: Fields) -> Options:
    """GPT-NeoX, OPT: heads share the width and each has its own keys, whatever the file says."""
    fields.skip("head_dim", "num_key_value_heads")
    return {"kv_channels": fields.size("hidden_size") // fields.size("num_attention_heads"), "num_query_groups": None}


def _gpt2(fields: Fields) -> Options:
    """GPT-2: an MLP of four times the width unless ``n_inner`` is set."""
    if fields.get("add_cross_attention"):
        fields.report("add_cross_attention", "counted without")
    return {"ffn_hidden_size": fields.get("n_inner") or 4 * fields.size("n_embd", "hidden_size")}


def _one_key_head(fields: Fields) -> Options:
    """GPT-BigCode: one key and value head for all queries where ``multi_query`` is true."""
    return {"num_query_groups": 1 if fields.get("multi_query") else None}


def _opt(fields: Fields) -> Options:
    """OPT: two positions more than it says; norms before or after each block."""
    narrow = fields.get("word_embed_proj_dim")
    if narrow and narrow != fields.size("hidden_size"):
        fields.report(
            "word_embed_proj_dim",
            "the projections to and from the narrower embedding are not counted, in work and parameter count",
        )
    before, positions = bool(fields.get("do_layer_norm_before")), fields.size("max_position_embeddings")
    return {
        "max_position_embeddings": positions + 2,
        "layernorm_learned": bool(fields.get("layer_norm_elementwise_affine")),
        "layernorm_placement": "pre" if before else "post",
        "post_layer_norm": before and not fields.get("_remove_final_layer_norm"),
        "add_bias_linear": bool(fields.get("enable_bias")),
    }


def _bloom(fields: Fields) -> Options:
    width = fields.size("hidden_size", "n_embed")
    return {"hidden_size": width, "ffn_hidden_size": 4 * width}


def _falcon(fields: Fields) -> Options:
    """Falcon: several fields decide the number of key heads and of norms."""
    new, beside = fields.get("new_decoder_architecture"), fields.get("parallel_attn")
    norms = fields.get("num_ln_in_parallel_attn") or (2 if new else 1)
    heads = fields.size("num_attention_heads", "n_head")
    grouped, alone = fields.get("num_kv_heads", "n_head_kv") or heads, fields.get("multi_query")
    groups = grouped if new else 1 if alone else heads
    width = fields.size("hidden_size", "n_embed")
    return {
        "num_query_groups": groups,
        "ffn_hidden_size": fields.get("ffn_hidden_size") or 4 * width,
        "kv_channels": width // heads,
        "layernorm_placement": ("parallel" if norms == 2 else "shared") if beside else "pre",
        "position_embedding_type": "none" if fields.get("alibi") else None,
        "add_bias_linear": bool(fields.get("bias")),
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
    _report_biases(fields, "attention_bias" if fields.get("attention_bias") else "mlp_bias")
    return {}


_DEPTHS = ("num_nextn_predict_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_hidden_layers")


def _next_token_depths(fields: Fields) -> Options:
    """transformers builds no multi-token-prediction layers, so they are reported and not assumed."""
    depths = {name: fields.get(name) for name in _DEPTHS}
    name = next((name for name, depth in depths.items() if depth), "")
    if fields.get("use_mtp") in (None, True) and name:
        fields.report(name, f"transformers does not train these layers; model.mtp_num_layers={depths[name]} counts them")
    return {}


def _words(fields: Fields, name: str, words: Sequence[str] | None, meaning: Mapping[str, Any]) -> list[Any]:
    """What each word of a field means; empty where it is not set."""
    for word in words or ():
        if word not in meaning:
            known = ", ".join(meaning)
            raise ConfigError(f"{fields.place}{name} has {short(word)}, which this family cannot have; known are {known}")
    return [meaning[word] for word in words or ()]


def _flags(fields: Fields, name: str, meaning: Mapping[str, bool]) -> list[bool]:
    """A field with one word per layer as flags; empty where it is not set."""
    return _words(fields, name, fields.get(name), meaning)


def _qwen_tower(width: str = "hidden_size", out: str = "out_hidden_size") -> Rule:
    """A Qwen vision tower; ``width`` and ``out`` name the fields of its width and of the width that it projects to."""

    def rule(fields: Fields) -> Options:
        tower = fields.part("vision_config")
        vision = {name: tower.get(name) for name in _TOWER_FIELDS.split()}
        vision["in_channels"] = tower.get("in_channels", "in_chans")
        vision |= {"hidden_size": tower.get(width), "out_hidden_size": tower.get(out)}
        tower.skip("spatial_patch_size")  # patch_size again
        fields.not_counted += tower.sentences()
        return {"vision_config": _set(vision)}

    return rule


def _glm_tower(fields: Fields) -> Options:
    """GLM-4.1V and 4.5V: a tower of gated MLPs without biases, as wide inside as the language model; a convolution merges its
    patches, and a gated MLP follows."""
    tower = fields.part("vision_config")
    tower.only("hidden_act", "silu")
    names = ("depth", "num_heads", "hidden_size", "hidden_act", "in_channels", "spatial_merge_size", "out_hidden_size")
    vision = {name: tower.get(name) for name in names} | {
        "patch_size": tower.size("patch_size"),
        "temporal_patch_size": tower.size("temporal_patch_size"),
        "intermediate_size": tower.size("out_hidden_size"),
        "projector_input_dim": tower.size("intermediate_size"),
        "num_position_embeddings": _side(tower) ** 2,
        "qkv_bias": bool(tower.get("attention_bias")),
        "linear_bias": False,
        "patch_norm": True,
        "projector_type": "gated_merger",
    }
    tower.skip("rms_norm_eps")
    fields.not_counted += tower.sentences()
    return {"vision_config": vision, "share_embeddings_and_output_weights": _tied_somewhere(fields)}


def _tied_somewhere(fields: Fields) -> bool:
    """Older files say it of the language model alone."""
    return bool(fields.get("tie_word_embeddings") or fields.part("text_config").get("tie_word_embeddings"))


def _t5(fields: Fields) -> Options:
    """T5: a decoder as deep as the encoder unless it has its own depth; ``gated-gelu`` names a gated MLP and its activation.

    Where gate and activation also have fields of their own, those win.
    """
    encoder, mlp = fields.size("num_layers", "num_hidden_layers"), fields.get("feed_forward_proj") or "relu"
    gated, name = fields.get("is_gated_act"), fields.get("dense_act_fn") or mlp.rsplit("-", 1)[-1]
    return {
        "encoder_num_layers": encoder,
        "num_layers": fields.get("num_decoder_layers") or encoder,
        "gated_linear_unit": mlp.startswith("gated-") if gated is None else bool(gated),
        "activation_func": _ACTIVATIONS.get("gelu_new" if mlp == "gated-gelu" else name),
    }


def _mask_token_head(fields: Fields) -> Options:
    """BERT with its masked-language-modeling head."""
    for name in ("is_decoder", "add_cross_attention"):
        if fields.get(name):
            fields.report(name, "counted as an encoder")
    # Untied, transformers builds the bias of its output twice and uses one.
    unused = 0 if fields.get("tie_word_embeddings") else fields.size("vocab_size")
    return {"kv_channels": fields.size("hidden_size") // fields.size("num_attention_heads"), "unpriced_parameters": unused}


def _whisper(fields: Fields) -> Options:
    """Whisper: the encoder over mel frames goes by the same names in configurations of its own."""
    return {"encoder_num_layers": fields.get("encoder_layers"), "audio_config": _given(fields, _WHISPER_ENCODER)}


def _qwen2_audio(fields: Fields) -> Options:
    """Qwen2-Audio: Whisper's encoder, whose positions do not train, averaged by two and projected by one matrix."""
    audio = fields.part("audio_config")
    found = _given(audio, _WHISPER_ENCODER)
    audio.skip("activation_function", "activation_dropout", "encoder_layerdrop", "layerdrop", "scale_embedding", "init_std")
    fields.not_counted += audio.sentences()
    return {"audio_config": found}


_WHISPER_ENCODER = "d_model encoder_layers encoder_attention_heads encoder_ffn_dim num_mel_bins max_source_positions"


def _given(fields: Fields, names: str) -> Options:
    """Those of these fields that are set, in the file or by its class."""
    return _set({name: fields.get(name) for name in names.split()})


def _set(options: Options) -> Options:
    return {name: value for name, value in options.items() if value is not None}


def _plain_tower(fields: Fields, tower: Fields, **more: Any) -> Options:
    """A tower over whole images of one size, with biases, layer norms and a learned table of positions, one for a class token."""
    names = {
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "in_channels": "num_channels",
        "projector_input_dim": "projector_input_dim",
        "projector_output_dim": "projector_output_dim",
    }
    vision: Options = {option: tower.get(name) for option, name in names.items()}
    positions = _side(tower) ** 2 + more.get("class_token", False)
    vision |= {"patch_size": tower.size("patch_size"), "temporal_patch_size": 1, "num_position_embeddings": positions, **more}
    tower.skip("hidden_act", "layer_norm_eps", "norm_eps")
    if tower is not fields:
        fields.not_counted += tower.sentences()
    return {"vision_config": _set(vision)}


def _side(tower: Fields) -> int:
    """Patches along one side of an image."""
    return tower.size("image_size") // tower.size("patch_size")


def _siglip_tower(fields: Fields) -> Options:
    """Gemma 3: SigLIP, averaged down to a fixed number of tokens."""
    tower = fields.part("vision_config")
    merge = _side(tower) // isqrt(fields.size("mm_tokens_per_image")) or 1  # the default tower is smaller than that
    return _siglip_in(fields, tower, spatial_merge_size=merge, projector_type="pooled_linear")


def _siglip_in(fields: Fields, tower: Fields, **projector: Any) -> Options:
    """SigLIP inside another model; its pooling head may be built, and nothing uses its output."""
    pools, options = tower.get("vision_use_head"), _plain_tower(fields, tower, **projector)
    width, inner = tower.size("hidden_size"), tower.size("intermediate_size")
    return options | ({"unpriced_parameters": _pooling_head(width, inner)} if pools else {})


def _tower(fields: Fields, *kinds: str) -> Fields:
    """``vision_config``, where it is the family's own."""
    tower = fields.part("vision_config")
    tower.only("model_type", *kinds)
    return tower


def _paligemma(fields: Fields) -> Options:
    """PaliGemma: SigLIP and one matrix; the image and what is asked of it see each other."""
    tower = _tower(fields, "siglip_vision_model")
    tower.skip("projection_dim", "num_image_tokens", "vocab_size", "projector_hidden_act")
    fields.skip("vocab_size", "hidden_size", "num_image_tokens")
    fields.not_counted.append("token_type_ids: pairs of a prefix in which tokens see later ones are counted by executed alone")
    wide = {"spatial_merge_size": 1, "out_hidden_size": fields.get("projection_dim")}
    return _siglip_in(fields, tower, projector_type="linear", **wide) | {"is_causal": True}


def _idefics3(*kinds: str) -> Rule:
    """Idefics 3 and SmolVLM: SigLIP without a head, patches side by side, one matrix."""

    def rule(fields: Fields) -> Options:
        merge, tower = fields.size("scale_factor"), _tower(fields, *kinds)
        tower.skip("max_image_size", "size", "tie_word_embeddings", "use_base_siglip", "num_image_tokens")
        return _siglip_in(fields, tower, spatial_merge_size=merge, projector_type="linear", projector_bias=False)

    return rule


def _llava_onevision(fields: Fields) -> Options:
    """LLaVA-OneVision: every tile of an image is an image of SigLIP's; its last states go through an MLP."""
    fields.only("vision_feature_layer", -1)
    fields.only("vision_feature_select_strategy", "full")
    tower, text = _tower(fields, "siglip_vision_model"), fields.part("text_config")
    fields.skip("image_grid_pinpoints", "vision_aspect_ratio", "projector_hidden_act", "use_image_newline_parameter")
    options = _siglip_in(
        fields,
        tower,
        spatial_merge_size=1,
        projector_type="tile_mlp",
        projector_bias=bool(fields.get("multimodal_projector_bias")),
    )
    newline = text.size("hidden_size")  # a learned vector between the rows of an image
    return {
        **options,
        "unpriced_parameters": options.get("unpriced_parameters", 0) + newline,
        "share_embeddings_and_output_weights": _tied_somewhere(fields),
    }


def _internvl(fields: Fields) -> Options:
    """InternVL: its own tower with a class token and scales, patches side by side, an MLP."""
    fields.only("vision_feature_layer", -1)
    fields.only("vision_feature_select_strategy", "default")
    tower = _tower(fields, "internvl_vision")
    tower.only("norm_type", "layer_norm")
    for name in ("use_qk_norm", "use_mask_token"):
        tower.only(name, False)
    for name in ("use_absolute_position_embeddings", "use_mean_pooling"):
        tower.only(name, True)
    tower.skip("layer_scale_init_value", "projection_dropout")
    fields.skip("image_seq_length", "projector_hidden_act")
    return _plain_tower(
        fields,
        tower,
        spatial_merge_size=int(1 / max(fields.get("downsample_ratio") or 0.5, 1e-9)),
        class_token=True,
        layer_scale=True,
        qkv_bias=bool(tower.get("attention_bias")),
        projector_type="normed_mlp",
    )


def _pooling_head(width: int, inner: int) -> int:
    """SigLIP's: a probe, one attention, a norm and an MLP, with biases."""
    return width + 4 * width * (width + 1) + 2 * width + 2 * width * inner + inner + width


def _siglip_alone(tower: Fields) -> Options:
    """SigLIP's vision tower by itself."""
    if tower.get("vision_use_head"):
        tower.report("vision_use_head", "the pooling head is not counted")
    return _plain_tower(tower, tower, projector_type="none")


def _siglip(fields: Fields) -> Options:
    """SigLIP: its vision tower; the text tower is reported."""
    fields.report("text_config", "the text tower is not counted")
    tower = fields.part("vision_config")
    options = _siglip_alone(tower)
    fields.not_counted += tower.sentences()
    return options


def _byte_latent(fields: Fields) -> Options:
    """BLT: transformers over bytes and over patches, whose fields are read where they are priced."""
    described = fields.mentioned(
        "vocab_size",
        "cross_attn_k",
        "patch_in_forward",
        "local_attention_window_len",
        "encoder_hash_byte_group_size",
        "encoder_hash_byte_group_vocab",
        "encoder_hash_byte_group_nb_functions",
    )
    parts = ("encoder_config", "global_config", "decoder_config", "patcher_config")
    return {"byte_latent_config": described | {name: _byte_latent_stack(fields, name) for name in parts}}


def _byte_latent_stack(fields: Fields, name: str) -> Options:
    """One of its transformers; widths of 0 are those that follow from the others."""
    stack = fields.part(name)
    stack.skip(*_UNREAD_IN_STACKS.split())
    sizes: Options = {size: stack.size(size) for size in ("num_hidden_layers", "hidden_size", "num_attention_heads")}
    sizes |= {size: stack.get(size) or None for size in ("num_key_value_heads", "intermediate_size")}
    sizes |= stack.mentioned("sliding_window", "cross_attn_all_layers")
    fields.not_counted += stack.sentences()
    return sizes


_UNREAD_IN_STACKS = """vocab_size cross_attn_k head_dim hidden_act max_position_embeddings hidden_size_global
                       encoder_cross_output_size rms_norm_eps tie_word_embeddings"""


def _deepseek_v4(fields: Fields) -> Options:
    """DeepSeek-V4: window and compressed attention layer by layer, grouped output projection, hyper-connections."""
    count, width, inner = (fields.size(name) for name in ("num_hidden_layers", "head_dim", "moe_intermediate_size"))
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128} | (fields.get("compress_rates") or {})
    kinds = fields.get("layer_types")
    # The published files list one ratio per layer, those of multi-token prediction last.
    ratios = fields.get("compress_ratios") or [rates.get(kind, 0) for kind in kinds or ()]
    # transformers' default: two layers of the coarse kind, then both in turn.
    ratios = list(ratios)[:count] or [128, 128, *(4 if i % 2 else 128 for i in range(count - 2))][:count]
    hashed = fields.get("mlp_layer_types", "num_hash_layers")
    if hashed != 0 and (not isinstance(hashed, list) or "hash_moe" in hashed):
        fields.report(("mlp_layer_types", "num_hash_layers"), "layers that route by hash are counted with a router")
    rope = fields.get("qk_rope_head_dim") or round(width * (fields.get("partial_rotary_factor") or 0.125))
    return _indexer_sizes(fields) | {
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
    }


def _llama4_tower(fields: Fields) -> Options:
    """Llama 4: a class token, then patches become channels."""
    tower = fields.part("vision_config")
    tower.skip("vision_feature_layer", "vision_feature_select_strategy", "projector_dropout", "multi_modal_projector_bias")
    return _plain_tower(
        fields,
        tower,
        spatial_merge_size=round(1 / (tower.get("pixel_shuffle_ratio") or 0.5)),
        vision_output_dim=tower.get("vision_output_dim"),
        class_token=True,
        projector_type="pixel_shuffle",
    )


_TOWER_FIELDS = """depth intermediate_size mlp_ratio hidden_act patch_size temporal_patch_size spatial_merge_size window_size
                   fullatt_block_indexes num_position_embeddings deepstack_visual_indexes"""


def _uncounted_tower(entries: Callable[[Fields, Fields, int], int]) -> Rule:
    """A tower whose work is not priced; ``entries``: of its weights, by the tower's fields and the language model's width."""

    def rule(fields: Fields) -> Options:
        if not fields.get("vision_config"):
            return {}
        fields.not_counted.append(f"{fields.place}vision_config: the vision tower and its projector are not counted")
        try:
            width = fields.part("text_config").size("hidden_size")
            return {"unpriced_parameters": entries(fields, fields.part("vision_config"), width)}
        except ConfigError:  # another tower than the family's own
            return {}

    return rule


def _pixtral(fields: Fields, tower: Fields, out: int) -> int:
    """Pixtral's tower and Mistral 3's projector."""
    width, merge = tower.size("hidden_size"), fields.get("spatial_merge_size") or 2
    layer = 4 * width * width + 3 * width * tower.size("intermediate_size") + 2 * width
    patches = (tower.get("num_channels") or 3) * tower.size("patch_size") ** 2 * width + width
    projector = width + merge * merge * width * width + (width + out) * out
    biases = 2 * out if fields.get("multimodal_projector_bias") else 0
    return patches + tower.size("num_hidden_layers") * layer + projector + biases


def _gemma4_tower(fields: Fields, tower: Fields, out: int) -> int:
    """Gemma 4's tower: a row of the position table for each place along both sides."""
    width, size = tower.size("hidden_size"), tower.size("head_dim")
    heads, groups = tower.size("num_attention_heads"), tower.size("num_key_value_heads")
    attention = 2 * (heads + groups) * size * width + 2 * size
    layer = attention + 3 * width * tower.size("intermediate_size") + 4 * width
    patches = 3 * tower.size("patch_size") ** 2 * width + 2 * tower.size("position_embedding_size") * width
    return patches + tower.size("num_hidden_layers") * layer + width * out


# ---- the families --------------------------------------------------------------------------------------------------

#: What nearly every family calls by the same names, and the sizes that most of them do.
_TABLES = {"vocab_size": "vocab_size", "share_embeddings_and_output_weights": "tie_word_embeddings"}
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "init_method_std": "initializer_range",
}
_LAYER_NORM = {"normalization": "LayerNorm"}

_DECODER = Family(
    fields={
        **_TABLES,
        **_SIZES,
        "num_query_groups": "num_key_value_heads",
        "layernorm_epsilon": ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon"),
        "attention_dropout": "attention_dropout",
    },
    rules=(_head_size, _vocabulary, _activation, _rope, _next_token_depths),
)
_SWIGLU = _DECODER.plus(fixed={"gated_linear_unit": True})
_LLAMA = _SWIGLU.plus(_attention_bias, _mlp_bias)
_LATENT = _SWIGLU.plus(
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
    ignored="head_dim qk_head_dim num_key_value_heads indexer_rope_interleave",
)
_DEEPSEEK_V3 = _LATENT.plus(_group_limited_routing)
_QWEN2 = _SWIGLU.plus(_windows(_upper_layers), fixed={"add_qkv_bias": True})
_QWEN2_VL_TEXT = _QWEN2.plus(inner=True)
_QWEN3 = _SWIGLU.plus(_attention_bias, fixed={"qk_layernorm": True})
_QWEN3_NEXT = _QWEN3.plus(
    _linear_attention, fixed={"attention_output_gate": True}, ignored="attn_output_gate mtp_use_dedicated_embeddings"
)
_QWEN3_NEXT_MOE = _QWEN3_NEXT.plus(_experts, fixed={"moe_shared_expert_gate": True})
_GEMMA = _SWIGLU.plus(_attention_bias, _bidirectional, fixed={"layernorm_zero_centered_gamma": True}, ignored="num_image_tokens")
_OLMO2 = _SWIGLU.plus(_attention_bias, fixed={"qk_layernorm": "full", "layernorm_placement": "post"})
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
    ignored="""relative_attention_max_distance scale_decoder_outputs tie_word_embeddings n_positions initializer_factor
               dropout_rate""",
)
_BERT = Family(
    fields={
        **_TABLES,
        **_SIZES,
        "num_tokentypes": "type_vocab_size",
        "layernorm_epsilon": "layer_norm_eps",
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    fixed={
        **_LAYER_NORM,
        "is_causal": False,
        "layernorm_placement": "post",
        "post_layer_norm": False,
        "embedding_layernorm": True,
        "position_embedding_type": "learned_absolute",
        "add_bias_linear": True,
        "bert_lm_head": True,
    },
    rules=(_vocabulary, _activation, _mask_token_head),
    ignored="""position_embedding_type directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
               pooler_size_per_head pooler_type""",
)
_WHISPER = Family(
    fields={
        "num_layers": "decoder_layers",
        "hidden_size": "d_model",
        "ffn_hidden_size": "decoder_ffn_dim",
        "num_attention_heads": "decoder_attention_heads",
        **_TABLES,
        "max_position_embeddings": "max_target_positions",
        "init_method_std": "init_std",
        "attention_dropout": "attention_dropout",
    },
    fixed={
        **_LAYER_NORM,
        "add_bias_linear": True,
        "add_key_bias": False,
        "position_embedding_type": "learned_absolute",
    },
    rules=(_vocabulary, _activation_in("activation_function"), _whisper),
    ignored="""num_hidden_layers activation_dropout encoder_layerdrop decoder_layerdrop scale_embedding use_weighted_layer_sum
               classifier_proj_size apply_spec_augment median_filter_width mask_time_prob mask_time_length mask_time_min_masks
               mask_feature_prob mask_feature_length mask_feature_min_masks""",
)
_COHERE = _SWIGLU.plus(_attention_bias, fixed={"layernorm_placement": "shared"})
_GPT2 = Family(
    fields={
        "num_layers": ("n_layer", "num_hidden_layers"),
        "hidden_size": ("n_embd", "hidden_size"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        **_TABLES,
        "max_position_embeddings": ("n_positions", "max_position_embeddings"),
        "layernorm_epsilon": "layer_norm_epsilon",
        "init_method_std": "initializer_range",
        "attention_dropout": "attn_pdrop",
    },
    fixed={**_LAYER_NORM, "add_bias_linear": True, "position_embedding_type": "learned_absolute"},
    rules=(_vocabulary, _activation_in("activation_function"), _gpt2),
    ignored="""n_ctx scale_attn_by_inverse_layer_idx reorder_and_upcast_attn summary_type summary_use_proj summary_activation
               summary_proj_to_labels summary_first_dropout""",
)
_VISION_LANGUAGE = Family(fields={"share_embeddings_and_output_weights": "tie_word_embeddings"})

_LFM2 = _SWIGLU.plus(
    _lfm2,
    fields={"share_embeddings_and_output_weights": ("tie_embedding", "tie_word_embeddings")},
    fixed={"qk_layernorm": True, "activation_func": "silu"},
    ignored="""block_dim conv_dim conv_dim_out block_mlp_init_scale block_out_init_scale block_use_swiglu block_use_xavier_init
               conv_use_xavier_init block_norm_eps use_pos_enc num_heads""",
)
_MAMBA = _DECODER.plus(
    fields={"mamba_state_dim": ("ssm_state_size", "state_size"), "mamba_num_groups": "n_groups"},
    fixed={"is_hybrid_model": True},
    ignored="expand use_conv_bias",
)
_DENSE_EXPERTS = "transformers_dense_experts"
_GLM = _SWIGLU.plus(_flag("attention_bias", "add_qkv_bias"))
_GLM4_MOE = _GLM.plus(_experts, _group_limited_routing, _flag("use_qk_norm", "qk_layernorm"))
_GRANITE_MOE = _SWIGLU.plus(_attention_bias, _experts, _shared_width)

FAMILIES: dict[str, Family] = {
    "apertus": _DECODER.plus(_attention_bias, fixed={"qk_layernorm": True}, ignored="qk_norm post_norm mlp_bias"),
    "arcee": _DECODER.plus(_attention_bias, _mlp_bias),
    "bamba": _SWIGLU.plus(_bamba, _attention_bias, _mlp_bias, ignored="z_loss_coefficient layer_types layers_block_type"),
    "bert": _BERT,
    "bloom": Family(
        fields={
            "num_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            **_TABLES,
            "layernorm_epsilon": "layer_norm_epsilon",
            "init_method_std": "initializer_range",
        },
        fixed={
            **_LAYER_NORM,
            "add_bias_linear": True,
            "embedding_layernorm": True,
            "position_embedding_type": "none",
            "activation_func": "gelu_tanh",
        },
        rules=(_bloom, _vocabulary),
        ignored="""apply_residual_connection_post_layernorm slow_but_exact seq_length n_inner masked_softmax_fusion
                   bias_dropout_fusion skip_bias_add skip_bias_add_qkv attention_dropout""",
    ),
    "blt": Family(
        rules=(_byte_latent,),
        ignored="""tie_word_embeddings max_position_embeddings patch_size patching_mode patching_threshold patching_batch_size
                   max_patch_length""",
    ),
    "camembert": _BERT,
    "cohere": _COHERE.plus(_full_norm("use_qk_norm")),
    "cohere2": _COHERE.plus(_windows(_every(4)), ignored="head_dim"),
    "cwm": _SWIGLU.plus(_windows(_all_but_each_fourth), _mlp_bias),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3.plus(_indexer, ignored="layer_types"),
    "deepseek_v4": _SWIGLU.plus(
        _deepseek_v4,
        fields={"q_lora_rank": "q_lora_rank", "o_groups": "o_groups", "o_lora_rank": "o_lora_rank", "hc_mult": "hc_mult"},
        ignored="""num_key_value_heads hc_sinkhorn_iters hc_eps compress_rope_theta scoring_func norm_topk_prob swiglu_limit
                   routed_scaling_factor attention_bias mlp_bias rms_norm_eps""",
    ),
    "dots1": _QWEN3.plus(
        _windows(_layers_from_max_window_layers), _experts, _group_limited_routing, ignored="use_sliding_window"
    ),
    "ernie4_5": _SWIGLU.plus(_flag("use_bias", "add_bias_linear"), ignored="compression_ratio freq_allocation"),
    "ernie4_5_moe": _SWIGLU.plus(_ernie_experts, ignored="moe_norm_min moe_capacity moe_use_aux_free moe_gate"),
    "exaone4": _QWEN3.plus(_windows(_every(4)), fixed={"layernorm_placement": "post"}),
    "exaone_moe": _QWEN3.plus(_windows(_every(4)), _experts, _group_limited_routing, ignored="is_moe_layer"),
    "falcon": _DECODER.plus(
        _falcon,
        _activation_in("activation"),
        fields={
            "num_layers": ("num_hidden_layers", "n_layer"),
            "hidden_size": ("hidden_size", "n_embed"),
            "num_attention_heads": ("num_attention_heads", "n_head"),
        },
        fixed=_LAYER_NORM,
    ),
    "falcon_h1": _SWIGLU.plus(
        _side_by_side,
        ignored="layers_block_type layer_types attn_layer_indices mlp_expansion_factor mamba_use_mlp",
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA.plus(_windows(_every(2)), fixed={"layernorm_placement": "sandwich"}),
    "gemma3": _VISION_LANGUAGE.plus(_siglip_tower, text="gemma3_text"),
    "gemma3_text": _GEMMA.plus(_windows(_every(6)), fixed={"layernorm_placement": "sandwich", "qk_layernorm": True}),
    "gemma4": _VISION_LANGUAGE.plus(_uncounted_tower(_gemma4_tower), text="gemma4_text", ignored="vision_soft_tokens_per_image"),
    "gemma4_text": _GEMMA.plus(
        _windows(_every(6), last_is_global=True),
        _gemma4,
        fields={
            "num_kv_shared_layers": "num_kv_shared_layers",
            "use_double_wide_mlp": "use_double_wide_mlp",
            "hidden_size_per_layer_input": "hidden_size_per_layer_input",
            "vocab_size_per_layer_input": "vocab_size_per_layer_input",
        },
        fixed={"layernorm_placement": "sandwich", "qk_layernorm": True},
    ),
    "glm": _GLM,
    "glm4": _GLM.plus(fixed={"layernorm_placement": "sandwich"}),
    "glm4_moe": _GLM4_MOE,
    "glm4_moe_lite": _DEEPSEEK_V3.plus(_first_layer_dense),
    "glm4v": _VISION_LANGUAGE.plus(_glm_tower, text="glm4v_text"),
    "glm4v_moe": _VISION_LANGUAGE.plus(_glm_tower, text="glm4v_moe_text"),
    "glm4v_moe_text": _GLM.plus(_experts, _group_limited_routing, inner=True),
    "glm4v_text": _SWIGLU.plus(fixed={"add_qkv_bias": True, "layernorm_placement": "sandwich"}, inner=True),
    "glm_moe_dsa": _DEEPSEEK_V3.plus(_indexer, _shared_indexer, ignored="layer_types index_share_for_mtp_iteration"),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2.plus(_one_key_head, ignored="num_key_value_heads"),
    "gpt_neox": _DECODER.plus(
        _attention_bias,
        _placed("parallel", "use_parallel_residual"),
        _equal_heads,
        fixed={**_LAYER_NORM, "add_mlp_bias": True},
        ignored="is_decoder",
    ),
    "gpt_oss": _SWIGLU.plus(
        _windows(_every(2)),
        _experts,
        _attention_bias,
        fields={"activation_func_clamp_value": "swiglu_limit"},
        fixed={"add_mlp_bias": True, "softmax_type": "learnable", "activation_func": "quick_gelu", "glu_linear_offset": 1.0},
    ),
    "granite": _LLAMA,
    "granite_swa": _LLAMA.plus(_windows(_all_but_each_fourth), fixed={"softmax_type": "learnable"}, ignored="layer_rope_theta"),
    "granitemoe": _SWIGLU.plus(_attention_bias, _experts),
    "granitemoe_swa": _GRANITE_MOE.plus(
        _windows(_all_but_each_fourth), fixed={"softmax_type": "learnable"}, ignored="layer_rope_theta"
    ),
    "granitemoehybrid": _SWIGLU.plus(_granite_hybrid, _attention_bias),
    "granitemoeshared": _GRANITE_MOE,
    # The published files list what larger models of the house have.
    "hunyuan_v1_dense": _QWEN3.plus(
        ignored="""add_classification_head anyres_pooling_size attention_head_dim cla_share_factor class_num dense_list
                   enable_lm_head_fp32 mask_init_id moe_drop_tokens moe_layer_num_skipped moe_topk norm_type num_experts
                   num_media_embeds num_shared_expert org_vocab_size pad_id pool_type position_embedding_xdrope text_end_id
                   text_start_id im_start_id im_end_id im_newline_id use_qk_norm use_rotary_pos_emb"""
    ),
    "hy_v3": _QWEN3.plus(
        _experts,
        _first_layer_dense,
        _unbiased_experts,
        fixed={"moe_router_score_function": "sigmoid"},
        ignored="router_scaling_factor enable_moe_fp32_combine",
    ),
    "hyperclovax": _LLAMA.plus(_placed("sandwich", "use_post_norm")),
    "idefics3": _VISION_LANGUAGE.plus(_idefics3("idefics3", "idefics3_vision"), text="llama"),
    "internlm3": _SWIGLU.plus(_internlm3),
    "internvl": _VISION_LANGUAGE.plus(_internvl, text="qwen2"),
    "iquestcoder": _LLAMA,
    "jais2": _DECODER.plus(_attention_bias, _mlp_bias, fixed=_LAYER_NORM),
    "jamba": _SWIGLU.plus(_jamba, fixed={"position_embedding_type": "none", "selective_scan_norms": True}),
    "kimi_k2": _DEEPSEEK_V3,
    "kimi_linear": _DEEPSEEK_V3.plus(
        _kimi_linear,
        fixed={"share_embeddings_and_output_weights": False},  # transformers ties nothing
        ignored="""tie_word_embeddings moe_layer_freq moe_renormalize num_expert_group use_grouped_topk mla_use_nope
                   moe_router_activation_func""",
    ),
    "lfm2": _LFM2.plus(_lfm2_width),
    "lfm2_moe": _LFM2.plus(_lfm2_experts),
    "llama": _LLAMA,
    "llama4": _VISION_LANGUAGE.plus(_llama4_tower, text="llama4_text", framework=_DENSE_EXPERTS),
    "llama4_text": _SWIGLU.plus(
        _attention_bias, _chunks, _llama4_experts, ignored="use_qk_norm for_llm_compressor", framework=_DENSE_EXPERTS
    ),
    "llava_onevision": _VISION_LANGUAGE.plus(_llava_onevision, text="qwen2"),
    "mamba2": _MAMBA.plus(
        _pure_mamba,
        _uncounted_of_mamba,
        fields={"mamba_head_dim": "head_dim"},
        fixed={"kv_channels": None},
        ignored="time_step_rank",
    ),
    "mimo": _SWIGLU.plus(_windows(_upper_layers), fixed={"add_qkv_bias": True}, ignored="attention_bias"),
    "mimo_v2_flash": _SWIGLU.plus(
        _group_limited_routing, _mimo_v2, fields={"layernorm_epsilon": ("rms_norm_eps", "layernorm_epsilon")}
    ),
    "minicpm3": _LATENT.plus(_value_heads, ignored="scale_emb scale_depth dim_model_base"),
    "minimax_m2": _SWIGLU.plus(
        _experts,
        fixed={"qk_layernorm": "full", "moe_router_score_function": "sigmoid"},
        ignored="""rotary_dim use_qk_norm qk_norm_type use_routing_bias attn_type_list mtp_transformer_layers
                   shared_intermediate_size""",
    ),
    "ministral": _SWIGLU.plus(_windows(_all_layers)),
    "ministral3": _SWIGLU.plus(_window),
    "mistral": _SWIGLU.plus(_window),
    "mistral3": _VISION_LANGUAGE.plus(
        _uncounted_tower(_pixtral),
        text="mistral",
        ignored="projector_hidden_act vision_feature_layer spatial_merge_size multimodal_projector_bias",
    ),
    "mistral4": _LATENT,
    "mixtral": _SWIGLU.plus(_window, _experts),
    "nemotron": _DECODER.plus(_attention_bias, _mlp_bias, fixed=_LAYER_NORM, ignored="kv_channels"),
    "nemotron-nas": _LLAMA.plus(_blocks),
    "nemotron_h": _MAMBA.plus(
        _hybrid,
        _uncounted_of_mamba,
        _attention_bias,
        fields={"mamba_num_heads": "mamba_num_heads", "mamba_head_dim": "mamba_head_dim"},
        fixed={"share_embeddings_and_output_weights": False},
        ignored="n_shared_experts num_hidden_layers mtp_layers_block_type mtp_hybrid_override_pattern",
    ),
    "olmo": _SWIGLU.plus(_attention_bias, fixed={**_LAYER_NORM, "layernorm_learned": False}),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2.plus(_windows(_every(4))),
    "olmoe": _SWIGLU.plus(_attention_bias, _experts, fixed={"qk_layernorm": "full"}),
    "opt": _DECODER.plus(
        _opt,
        _equal_heads,
        _activation_in("activation_function"),
        fields={"ffn_hidden_size": "ffn_dim", "init_method_std": "init_std"},
        fixed={**_LAYER_NORM, "position_embedding_type": "learned_absolute"},
        ignored="layerdrop activation_dropout",
    ),
    "paligemma": _VISION_LANGUAGE.plus(_paligemma, text="gemma"),
    "phi": _DECODER.plus(
        _flag("qk_layernorm", "qk_layernorm"),
        fixed={**_LAYER_NORM, "add_bias_linear": True, "add_output_bias": True, "layernorm_placement": "shared"},
    ),
    "phi3": _SWIGLU.plus(_window, ignored="full_attn_mod interpolate_factor", framework="transformers_fused"),
    # Its router takes two experts, whatever num_experts_per_tok says.
    "phimoe": _SWIGLU.plus(
        _window,
        _attention_bias,
        _experts,
        _flag("lm_head_bias", "add_output_bias"),
        fixed={**_LAYER_NORM, "moe_router_topk": 2},
    ),
    "qwen2": _QWEN2,
    # Nothing is tied, whatever its files say of it.
    "qwen2_audio": Family(
        rules=(_qwen2_audio,), fixed={"share_embeddings_and_output_weights": False}, text="qwen2", ignored="tie_word_embeddings"
    ),
    "qwen2_5_vl": _VISION_LANGUAGE.plus(_qwen_tower(), text="qwen2_5_vl_text"),
    "qwen2_5_vl_text": _QWEN2_VL_TEXT,
    "qwen2_moe": _SWIGLU.plus(
        _windows(_lower_odd_layers), _experts, _flag("qkv_bias", "add_qkv_bias"), fixed={"moe_shared_expert_gate": True}
    ),
    "qwen2_vl": _VISION_LANGUAGE.plus(_qwen_tower("embed_dim", "hidden_size"), text="qwen2_vl_text"),
    "qwen2_vl_text": _QWEN2_VL_TEXT,
    "qwen3": _QWEN3.plus(_windows(_upper_layers)),
    "qwen3_5": _VISION_LANGUAGE.plus(_qwen_tower(), text="qwen3_5_text"),
    "qwen3_5_moe": _VISION_LANGUAGE.plus(_qwen_tower(), text="qwen3_5_moe_text"),
    "qwen3_5_moe_text": _QWEN3_NEXT_MOE,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_moe": _QWEN3.plus(_optional_window, _experts, ignored="max_window_layers"),
    "qwen3_next": _QWEN3_NEXT_MOE,
    "qwen3_vl": _VISION_LANGUAGE.plus(_qwen_tower(), text="qwen3_vl_text"),
    "qwen3_vl_moe": _VISION_LANGUAGE.plus(_qwen_tower(), text="qwen3_vl_moe_text"),
    "qwen3_vl_moe_text": _QWEN3.plus(_experts, inner=True),
    "qwen3_vl_text": _QWEN3.plus(inner=True),
    "roberta": _BERT,
    "seed_oss": _SWIGLU.plus(_attention_bias, _flag("attention_out_bias", "add_proj_bias"), _mlp_bias),
    "smolvlm": _VISION_LANGUAGE.plus(_idefics3("smolvlm", "smolvlm_vision", "idefics3", "idefics3_vision"), text="llama"),
    "smollm3": _LLAMA.plus(_windows(_layers_without_rope), ignored="max_window_layers"),
    "solar_open": _GLM4_MOE,
    "stablelm": _SWIGLU.plus(
        _flag("use_qkv_bias", "add_qkv_bias"),
        _placed("shared", "use_parallel_residual"),
        _uncounted_head_norms,
        fixed=_LAYER_NORM,
    ),
    "starcoder2": _DECODER.plus(
        _window,
        _flag("use_bias", "add_bias_linear"),
        fixed=_LAYER_NORM,
        ignored="activation_function mlp_type norm_type",
    ),
    "siglip": Family(rules=(_siglip,), ignored="initializer_factor"),
    "siglip_vision_model": Family(rules=(_siglip_alone,)),
    "t5": _T5,
    "vaultgemma": _GEMMA.plus(_windows(_every(2))),
    "whisper": _WHISPER,
    "xlm-roberta": _BERT,
    "youtu": _LATENT.plus(ignored="embedding_initializer_range"),
}
