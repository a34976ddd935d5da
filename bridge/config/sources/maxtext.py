"""From MaxText's configuration to ours: a mapping of its options, its configuration object, or a YAML file.

The fields of the model describe what MaxText builds.  Where its own formula (calculate_tflops_training_per_device) assumes
something else, ``model.formula`` holds that; the convention ``maxtext`` follows it.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

from bridge.config import yaml_file
from bridge.config.schema import Config, ModelConfig, PeftConfig
from bridge.config.sources.maxtext_fields import CHANGES, DERIVED, HARDWARE, NEUTRAL, READ, names
from bridge.flops import reading
from bridge.flops.shapes import ConfigError, short

Fields = dict[str, Any]


@dataclass(kw_only=True)
class MaxTextConfig(Config):
    """A run's configuration whose ``model`` was read from MaxText's.

    MaxText's own number, per device and step, is that of ``sequences_per_step`` sequences of ``model.seq_length`` tokens (and of
    as many images where there is a tower).  FLOPs are linear in the sequences, so for one of them it is

        plan = compile_plan(config, "maxtext")
        plan.flops([config.model.seq_length], config.image_patches) * config.sequences_per_step
    """

    decoder_block: str = ""
    """MaxText's name of the architecture."""
    per_device_batch_size: float = 12.0
    """Sequences per device in one pass; a fraction where devices share a sequence."""
    gradient_accumulation_steps: int = 1
    """Passes per step."""
    image_patches: tuple[int, ...] = ()
    """Patches of the image that comes with each sequence; empty without a vision tower."""
    reference_model: bool = False
    """The model itself also runs forward beside the trained one (use_dpo)."""
    not_counted: tuple[str, ...] = ()
    """Options that change the work and are not priced, and names that are not MaxText's, one sentence each."""

    @property
    def sequences_per_step(self) -> Fraction:
        """Sequences of one device in one step: per_device_batch_size x gradient_accumulation_steps."""
        return Fraction(self.per_device_batch_size) * self.gradient_accumulation_steps


def recognises(cfg: Any) -> bool:
    """Whether this is a configuration of MaxText's: a mapping or an object with its options, or the path of a YAML file."""
    if isinstance(cfg, (str, Path)):
        try:
            return Path(cfg).suffix in (".yml", ".yaml") and recognises(_load(Path(cfg)))
        except ConfigError:
            return False
    marks = (reading.get(cfg, name) for name in ("decoder_block", "base_emb_dim", "base_num_decoder_layers", "base_config"))
    return any(isinstance(mark, (str, int, Enum)) for mark in marks)


def from_maxtext(config: Any) -> MaxTextConfig:
    """Read a MaxText configuration.

    Args:
        config: a mapping of MaxText's options, an object that has them as attributes, or the path of a YAML file, over the files
            that its base_config and model_name name where they are beside it.  What is not said is as in MaxText's base.yml.  The
            vision tower is read with ``use_multimodal``, as in MaxText.

    Raises:
        ConfigError: a ``decoder_block`` that is not known, no such file, or a value that cannot be.
    """
    options = _Options(_as_mapping(config))
    result = options.config()
    reading.read(result)
    return result


def patches_per_image(config: Any) -> int:
    """Patches of one image of the configured size."""
    options = _Options(_as_mapping(config))
    return options.patches(options.tower or "gemma3")


# ---- options --------------------------------------------------------------------------------------------------------

#: Derived sizes -> the option they scale, and which of get_individual_scales' exponents does it.
_SCALED = {
    "emb_dim": ("base_emb_dim", 2),
    "num_query_heads": ("base_num_query_heads", 1),
    "num_kv_heads": ("base_num_kv_heads", 1),
    "mlp_dim": ("base_mlp_dim", 1),
    "moe_mlp_dim": ("base_moe_mlp_dim", 1),
    "num_decoder_layers": ("base_num_decoder_layers", 3),
}
#: Beside MaxText's options: a label, the period of global layers, and the sizes that its code fixes for Gemma 3's tower.
_BESIDE = ("config", "global_layer_every", "vit_fixed")
_KNOWN = frozenset((*READ, *DERIVED, *CHANGES, *HARDWARE, *NEUTRAL, *_BESIDE))

#: Blocks that have experts; that have shared ones beside them; whose shared ones the formula forgets in its MTP depths.
_WITH_EXPERTS = names("deepseek deepseek4 envy gemma4 gpt_oss llama4 mixtral qwen3_5 qwen3_custom_moe qwen3_moe qwen3_next")
_WITH_SHARED = ("deepseek", "deepseek4", "gemma4", "llama4", "qwen3_5", "qwen3_next")
_NOT_SHARED_IN_MTP = ("deepseek4", "qwen3_5")
#: Every interleave_moe_layer_step-th layer has the experts.
_INTERLEAVED = ("llama4", "envy")
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu_tanh", "relu": "relu", "sigmoid": "quick_gelu"}
#: Towers that the formula prices.
_PRICED_TOWERS = ("gemma3", "llama4")


class _Options:
    """MaxText's options, with base.yml's values where nothing is said."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        self.block = self["decoder_block"]
        if self.block not in _BLOCKS:
            raise ConfigError(f"decoder_block={self.block!r} is not known; choose from {', '.join(sorted(_BLOCKS))}")

    def __getitem__(self, name: str) -> Any:
        value = self.values.get(name)
        return READ.get(name) if value is None else value

    def whole(self, name: str) -> int:
        """An option that is a whole number; MaxText writes "off" as 0 or -1."""
        if name in _SCALED and self.values.get(name) is None:
            return self._scaled(*_SCALED[name])
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}={value!r} must be a whole number; MaxText's base.yml has {READ.get(name)!r}")
        return value

    def _scaled(self, base: str, exponent: int) -> int:
        scale = self.whole("global_parameter_scale")
        if scale < 1 or scale & (scale - 1):
            raise ConfigError(f"global_parameter_scale={scale} must be a power of two")
        # Each doubling widens heads and MLPs, then the residual stream, then adds layers.
        return self.whole(base) << (scale.bit_length() - 1 + 3 - exponent) // 3

    def positive(self, name: str) -> int | None:
        """The same, None for off."""
        value = self.whole(name)
        return value if value > 0 else None

    def needed(self, name: str, by: str) -> int:
        value = self.whole(name)
        if value <= 0:
            raise ConfigError(f"{name}={value} must be a positive integer: {by} needs it")
        return value

    def several(self, name: str) -> list[Any]:
        value = self[name]
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}={value!r} must be a list; MaxText's base.yml has {READ.get(name)!r}")
        return list(value)

    @property
    def layers(self) -> int:
        return self.needed("num_decoder_layers", "a model")

    @property
    def streams(self) -> int | None:
        """Copies of the residual stream."""
        streams = self.whole("mhc_expansion_rate")
        return streams if streams > 1 else None

    @property
    def has_experts(self) -> bool:
        return self.whole("num_experts") > 1

    # ---- the configuration ------------------------------------------------------------------------------------------

    def config(self) -> MaxTextConfig:
        model = ModelConfig(**self.model())
        tower = model.vision_config or {}
        deepstack = model.freeze_vision_model and tower.get("deepstack_visual_indexes")
        return MaxTextConfig(
            name=str(self.values.get("model_name") or self.block),
            model=model,
            # The gradient stops where the tower ends: its deepstack mergers are inside, the last one is not.
            peft=PeftConfig(kind="freeze", freeze=["vision_model.deepstack_merger_list"]) if deepstack else None,
            decoder_block=self.block,
            per_device_batch_size=self.number("per_device_batch_size"),
            gradient_accumulation_steps=self.needed("gradient_accumulation_steps", "a step"),
            image_patches=(self.patches(self.tower),) if tower else (),
            reference_model=bool(self["use_dpo"]),
            not_counted=tuple(self.not_counted()),
        )

    def number(self, name: str) -> float:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{name}={value!r} must be a positive number")
        return float(value)

    def model(self) -> Fields:
        parts = (self.sizes(), self.attention(), self.experts(), self.memory(), _BLOCKS[self.block](self), self.tower_fields())
        formula = {name: value for part in parts for name, value in part.pop("formula", {}).items()}
        fields = {name: value for part in parts for name, value in part.items()}
        return {**fields, "formula": formula or None}

    def sizes(self) -> Fields:
        activations = self.several("mlp_activations")
        if len(activations) not in (1, 2):
            raise ConfigError(f"mlp_activations={activations!r} must have one activation, or two for a gated MLP")
        norms = bool(self["use_post_attn_norm"] or self["use_post_ffw_norm"])
        positions = self.positive("trainable_position_size")
        return {
            "num_layers": self.layers,
            "hidden_size": self.needed("emb_dim", "a model"),
            "ffn_hidden_size": self.positive("mlp_dim"),
            "vocab_size": self.needed("vocab_size", "a model"),
            "seq_length": self.needed("max_target_length", "a batch"),
            "should_pad_vocab": False,
            "gated_linear_unit": len(activations) == 2,
            "activation_func": _ACTIVATIONS.get(str(activations[0]), "silu"),
            "share_embeddings_and_output_weights": bool(self["logits_via_embedding"]),
            "layernorm_placement": "sandwich" if norms else "pre",
            "rotary_percent": float(self["partial_rotary_factor"]),
            "position_embedding_type": "learned_absolute" if positions else "rope",
            "max_position_embeddings": positions,
            "mtp_num_layers": self.positive("mtp_num_layers"),
            "hidden_size_per_layer_input": self.positive("hidden_size_per_layer_input"),
            "vocab_size_per_layer_input": self.positive("vocab_size_per_layer_input"),
            "num_kv_shared_layers": self.positive("num_kv_shared_layers"),
            "use_double_wide_mlp": bool(self["use_double_wide_mlp"]),
        }

    def attention(self) -> Fields:
        return {
            "num_attention_heads": self.needed("num_query_heads", "attention"),
            "num_query_groups": self.groups(),
            "kv_channels": self.positive("head_dim"),
            "qk_layernorm": bool(self["use_qk_norm"]),
            "add_qkv_bias": bool(self["attention_bias"]),
            # Qwen2 has none on the way out.
            "add_proj_bias": bool(self["attention_bias"]) and self.block != "qwen2",
            "softmax_type": "learnable" if self["attention_sink"] else "vanilla",
            "q_lora_rank": self.positive("q_lora_rank"),
            "kv_lora_rank": self.whole("kv_lora_rank") or READ["kv_lora_rank"],
            "qk_head_dim": self.whole("qk_nope_head_dim"),
            "qk_pos_emb_head_dim": self.whole("qk_rope_head_dim"),
            "v_head_dim": self.whole("v_head_dim"),
            "dsa_indexer_n_heads": self.positive("indexer_n_heads"),
            "dsa_indexer_head_dim": self.positive("indexer_head_dim"),
            "dsa_indexer_topk": self.positive("indexer_topk"),
            "dsa_indexer_loss_coeff": float(self["indexer_loss_scaling_factor"]) or None,
            "dsa_indexer_use_sparse_loss": bool(self["indexer_sparse_training"]),
            # Only Gemma 4's attention shares them; the formula halves them in any.
            "formula": {"attention_k_eq_v": True} if self["share_kv_projections"] else {},
        }

    def groups(self) -> int | None:
        """Key/value heads; base.yml's where nothing is said, if the queries can share them."""
        said = any(self.values.get(name) is not None for name in ("num_kv_heads", "base_num_kv_heads"))
        groups = self.positive("num_kv_heads")
        return groups if said or not groups or self.whole("num_query_heads") % groups == 0 else None

    def experts(self) -> Fields:
        """Any num_experts above 1 is a mixture; layers that are dense nevertheless follow from the block."""
        if not self.has_experts:
            return {}
        layers, width = range(self.layers), self.needed("moe_mlp_dim", f"num_experts={self['num_experts']}")
        moe = [self.block in _WITH_EXPERTS for _ in layers]
        if self.block == "deepseek":
            moe = [i >= self.whole("first_num_dense_layers") for i in layers]
        if self.block in _INTERLEAVED:
            step = self.needed("interleave_moe_layer_step", f"decoder_block={self.block!r}")
            moe = [(i + 1) % step == 0 for i in layers]
        shared_width = self.needed("mlp_dim", "a shared expert") if self.block == "gemma4" else width
        shared = self.whole("shared_experts") * shared_width if self.block in _WITH_SHARED else 0
        formula: Fields = {"mtp": {"moe_shared_expert_intermediate_size": None}} if self.block in _NOT_SHARED_IN_MTP else {}
        if self.block not in (*_WITH_SHARED, "qwen3_custom_moe"):
            formula["moe_layer_freq"] = 1
        return {
            "num_moe_experts": self.whole("num_experts"),
            "moe_router_topk": self.needed("num_experts_per_tok", "num_experts"),
            "moe_ffn_hidden_size": width,
            "moe_layer_freq": [int(flag) for flag in moe],
            "moe_shared_expert_intermediate_size": shared or None,
            "moe_router_score_function": "sigmoid" if self["routed_score_func"] == "sigmoid" else "softmax",
            "moe_router_enable_expert_bias": bool(self["routed_bias"]),
            "formula": formula,
        }

    def memory(self) -> Fields:
        """Engram's layers, and the rows of their tables: primes from a base up, each used once in the model."""
        layers = self.several("engram_layers")
        if not layers:
            return {}
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.layers for i in layers):
            raise ConfigError(f"engram_layers={layers!r} must be layer numbers from 0 to {self.layers - 1}")
        sizes, heads, bases = self.needed("engram_max_ngram_size", "Engram"), self.needed("engram_num_heads", "Engram"), []
        if len(self.several("engram_vocab_bases")) == sizes - 1:
            bases = self.several("engram_vocab_bases")
        seen: set[int] = set()
        fields = {
            "engram_layers": layers,
            "engram_max_ngram_size": sizes,
            "engram_num_heads": heads,
            "engram_head_dim": self.needed("engram_head_dim", "Engram"),
            "engram_kernel_size": self.needed("engram_kernel_size", "Engram"),
            "engram_table_rows": [sum(_primes(bases, heads, seen)) for _ in layers] if bases else None,
            "hc_mult": self.streams,
        }
        # Only DeepSeek's layers have it; the formula prices it in any.
        return fields if self.block == "deepseek" else {"formula": fields}

    # ---- the vision tower -------------------------------------------------------------------------------------------

    @property
    def tower(self) -> str:
        """The tower's block; by the decoder's where none is named."""
        named = self.values.get("vision_encoder_block") or "none"
        return self.block if named == "none" and self.block in _PRICED_TOWERS else str(named)

    def tower_fields(self) -> Fields:
        if not self["use_multimodal"] or self.tower not in _TOWERS:
            return {}
        # The formula goes by the model's name.
        name = str(self.values.get("model_name") or self.tower)
        unpriced = self.tower not in _PRICED_TOWERS or not name.startswith(_PRICED_TOWERS)
        return {
            "vision_config": _TOWERS[self.tower](self),
            "freeze_vision_model": bool(self["freeze_vision_encoder_params"]),
            "formula": {"vision_config": None} if unpriced else {},
        }

    def patches(self, tower: str) -> int:
        size = self["tile_size_for_vit"] if tower == "llama4" else self["image_size_for_vit"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        patch = self.fixed["patch_size"] if tower == "gemma3" else self.needed("patch_size_for_vit", "a vision tower")
        return int(height // patch) * int(width // patch)

    @property
    def fixed(self) -> Fields:
        """Sizes of Gemma 3's tower, constants of MaxText's code."""
        return self["vit_fixed"] or {"patch_size": 14, "hidden": 1152, "intermediate": 4304, "layers": 27, "pooling_window": 4}

    # ---- what is not counted ----------------------------------------------------------------------------------------

    def not_counted(self) -> Iterator[str]:
        for name, default in CHANGES.items():
            value = self.values.get(name)
            if value not in (None, "None", default) and (name != "lora" or reading.get(value, "enable_lora")):
                yield f"{name}={value!r}: changes the work and is not counted"
        if self["use_multimodal"] and self.tower not in _TOWERS:
            yield f"use_multimodal=True with vision_encoder_block={self.tower!r}: this vision tower is not counted"
        if self["use_dpo"] and "orpo" in (reading.get(self["dpo"], "algo"), self.values.get("algo")):
            yield "dpo.algo='orpo': ORPO has no reference model, but its forward pass is counted, as MaxText does"
        if self.block in ("simple", "simple_mlp"):
            yield f"decoder_block={self.block!r}: priced as a transformer, as MaxText does"
        for name, value in self.values.items():
            if name not in _KNOWN:
                near = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0.8)
                yield f"not recognized: {name}={short(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _primes(bases: list[int], heads: int, seen: set[int]) -> Iterator[int]:
    for base in bases:
        candidate = base
        for _ in range(heads):
            while candidate in seen or any(candidate % i == 0 for i in range(2, math.isqrt(candidate) + 1)):
                candidate += 1
            seen.add(candidate)
            yield candidate


# ---- decoder blocks -------------------------------------------------------------------------------------------------


def _plain(options: _Options) -> Fields:
    """Attention over all tokens in every layer, whatever attention_type says; the formula believes "mla"."""
    if options["attention_type"] != "mla":
        return {}
    return {"formula": {"multi_latent_attention": True, **_sparse(options)}}


def _sparse(options: _Options) -> Fields:
    return {"experimental_attention_variant": "dsa"} if options["use_indexer"] else {}


def _gpt3(options: _Options) -> Fields:
    return {"normalization": "LayerNorm", "add_bias_linear": True}


def _deepseek(options: _Options) -> Fields:
    fields = {"multi_latent_attention": True, "hc_mult": options.streams, **_sparse(options)}
    if options.values.get("attention_type", "mla") != "mla":
        fields["formula"] = {"multi_latent_attention": False, "experimental_attention_variant": None}
    return fields


def _deepseek4(options: _Options) -> Fields:
    width, rotated = options.needed("head_dim", "decoder_block='deepseek4'"), options.whole("qk_rope_head_dim")
    ratios = options.several("compress_ratios") or _deepseek4_ratios(options.layers)
    return {
        "experimental_attention_variant": "dsv4_hybrid",
        "csa_compress_ratios": ratios + [0] * options.whole("mtp_num_layers"),
        "csa_window_size": options.needed("sliding_window_size", "decoder_block='deepseek4'"),
        "qk_head_dim": width - rotated if 0 < rotated < width else width,
        "qk_pos_emb_head_dim": rotated if 0 < rotated < width else 0,
        "v_head_dim": width,
        "o_groups": options.positive("o_groups"),
        "o_lora_rank": options.positive("o_lora_rank"),
        "hc_mult": options.streams,
        "formula": {"attention_k_eq_v": False},
    }


def _deepseek4_ratios(layers: int) -> list[int]:
    """DeepSeek-V4's own: two layers with a window alone, then one of 4 and one of 128 in turn."""
    return [0, 0, *(4 if i % 2 == 0 else 128 for i in range(layers))][:layers]


def _windowed(every: int) -> Callable[[_Options], Fields]:
    """Local layers with a sliding window, every Nth one global."""

    def fields(options: _Options) -> Fields:
        return {
            "window_size": options.needed("sliding_window_size", f"decoder_block={options.block!r}"),
            "window_attn_skip_freq": options["global_layer_every"] or every,
        }

    return fields


def _gemma2(options: _Options) -> Fields:
    # One decoder layer of MaxText's Gemma 2 is a pair: one local, one global.
    return {"num_layers": 2 * options.layers, **_windowed(2)(options)}


def _gemma4(options: _Options) -> Fields:
    return {
        **_windowed(6)(options),
        "global_kv_channels": options.positive("global_head_dim"),
        "global_num_query_groups": options.positive("global_num_kv_heads"),
        "global_attention_k_eq_v": bool(options["share_kv_projections"]),
        "formula": {"attention_k_eq_v": False},
    }


def _gemma4_small(options: _Options) -> Fields:
    period = 5 if options["model_name"] == "gemma4-e2b" else 6
    return {**_gemma4(options), **_windowed(period)(options), "global_attention_k_eq_v": False}


def _olmo3(options: _Options) -> Fields:
    # The formula takes every layer to be global.
    whole = {"window_size": None, "window_attn_skip_freq": None}
    return {**_windowed(4)(options), "layernorm_placement": "post", "qk_layernorm": "full", "formula": whole}


def _llama4(options: _Options) -> Fields:
    return {
        "attention_chunk_size": options.positive("chunk_attn_window_size"),
        "no_rope_freq": options.positive("nope_layer_interval"),
    }


def _qwen3_next(options: _Options) -> Fields:
    return {
        "experimental_attention_variant": "gdn",
        "linear_attention_freq": options.needed("inhomogeneous_layer_cycle_interval", f"decoder_block={options.block!r}"),
        "linear_conv_kernel_dim": options.whole("gdn_conv_kernel_dim"),
        "linear_key_head_dim": options.whole("gdn_key_head_dim"),
        "linear_value_head_dim": options.whole("gdn_value_head_dim"),
        "linear_num_key_heads": options.whole("gdn_num_key_heads"),
        "linear_num_value_heads": options.whole("gdn_num_value_heads"),
        "attention_output_gate": True,
        "qk_layernorm": True,
        "moe_shared_expert_gate": options.has_experts and options.whole("shared_experts") > 0,
    }


def _qwen3_custom_moe(options: _Options) -> Fields:
    narrow, inside = (
        options.needed(name, "decoder_block='qwen3_custom_moe'") for name in ("attention_output_dim", "moe_expert_input_dim")
    )
    if narrow != inside:
        raise ConfigError(
            f"attention_output_dim={narrow} and moe_expert_input_dim={inside} must be equal, because experts read what "
            "attention writes"
        )
    return {"attention_output_size": narrow}


_PLAIN = names("default envy gemma llama2 mistral mixtral qwen2 qwen3 qwen3_moe simple simple_mlp")
_BLOCKS: dict[str, Callable[[_Options], Fields]] = {
    **dict.fromkeys(_PLAIN, _plain),
    "gpt3": _gpt3,
    "deepseek": _deepseek,
    "deepseek4": _deepseek4,
    "gpt_oss": _windowed(2),
    "gemma2": _gemma2,
    "gemma3": _windowed(6),
    "gemma4": _gemma4,
    "gemma4_small": _gemma4_small,
    "olmo3": _olmo3,
    "llama4": _llama4,
    "qwen3_next": _qwen3_next,
    "qwen3_5": _qwen3_next,
    "qwen3_custom_moe": _qwen3_custom_moe,
}


# ---- vision towers --------------------------------------------------------------------------------------------------


def _gemma3_tower(options: _Options) -> Fields:
    fixed = options.fixed
    return {
        "depth": fixed["layers"],
        "hidden_size": fixed["hidden"],
        "intermediate_size": fixed["intermediate"],
        "patch_size": fixed["patch_size"],
        "temporal_patch_size": 1,
        "in_channels": options.whole("num_channels_for_vit"),
        "spatial_merge_size": fixed["pooling_window"],
        "projector_type": "pooled_linear",
    }


def _tower(options: _Options) -> Fields:
    return {
        "depth": options.whole("num_hidden_layers_for_vit"),
        "hidden_size": options.whole("hidden_size_for_vit"),
        "num_heads": options.whole("num_attention_heads_for_vit"),
        "intermediate_size": options.whole("intermediate_size_for_vit"),
        "patch_size": options.whole("patch_size_for_vit"),
        "in_channels": options.whole("num_channels_for_vit"),
    }


def _llama4_tower(options: _Options) -> Fields:
    return {
        **_tower(options),
        "temporal_patch_size": 1,
        "spatial_merge_size": round(1 / options.number("pixel_shuffle_ratio_for_vit")),
        "class_token": True,
        "projector_type": "pixel_shuffle",
        "projector_input_dim": options.whole("projector_input_dim_for_vit"),
        "projector_output_dim": options.whole("projector_output_dim_for_vit"),
    }


def _qwen3_tower(options: _Options) -> Fields:
    return {
        **_tower(options),
        "temporal_patch_size": options.whole("temporal_patch_size_for_vit"),
        "spatial_merge_size": options.whole("spatial_merge_size_for_vit"),
        "out_hidden_size": options.whole("out_hidden_size_for_vit"),
        "num_position_embeddings": options.whole("num_position_embeddings_for_vit"),
        "deepstack_visual_indexes": options.several("deepstack_visual_indexes_for_vit"),
    }


_TOWERS: dict[str, Callable[[_Options], Fields]] = {
    "gemma3": _gemma3_tower,
    "llama4": _llama4_tower,
    **dict.fromkeys(("qwen3_vl", "qwen3_omni", "qwen3_5"), _qwen3_tower),
}


# ---- files and objects ----------------------------------------------------------------------------------------------


def _as_mapping(config: Any) -> Mapping[str, Any]:
    if isinstance(config, (str, Path)):
        return _with_models(Path(config), _with_bases(Path(config)))
    values = config if isinstance(config, Mapping) else {name: getattr(config, name) for name in _KNOWN if hasattr(config, name)}
    _check_sized(values, "")
    return values


def _check_sized(values: Mapping[str, Any], place: str) -> None:
    """A model name without sizes refers to a file of MaxText's that is not here."""
    name = values.get("model_name")
    if name not in (None, "", "default") and not any(values.get(size) for size in ("decoder_block", "base_emb_dim", "emb_dim")):
        raise ConfigError(f"{place}model_name={name!r} names models/{name}.yml of MaxText's configs; give its options too")


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's options over those of its base_config; base.yml's are known without the file."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: base_config forms a circle; remove one of them")
    values = _load(path)
    base = values.get("base_config")
    if not base:
        return values
    found = _beside(path, str(base))
    if found is None and Path(str(base)).name != "base.yml":
        raise ConfigError(f"{path}: base_config={short(base)} does not exist; name a file beside this one")
    return {**(_with_bases(found, (*above, path.resolve())) if found else {}), **values}


def _with_models(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The options over those of the model's file, which ``model_name`` names."""
    name = values.get("model_name")
    found = _beside(path, f"models/{name}.yml") if name not in (None, "", "default") else None
    values = {**values, **_load(found), **_load(path)} if found else values
    _check_sized(values, f"{path}: ")
    return values


def _beside(path: Path, name: str) -> Path | None:
    """A file named from the folder of ``path``, or from one of the two above it."""
    places = (folder / name for folder in (path.parent, *path.resolve().parents[1:3]))
    return next((place for place in places if os.path.isfile(place)), None)  # no error where the name is too long


def _load(path: Path) -> dict[str, Any]:
    values = yaml_file.read_foreign(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no options; give a YAML file of MaxText's options, one `name: value` per line")
    return values
