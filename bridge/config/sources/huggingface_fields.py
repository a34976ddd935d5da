"""A Hugging Face configuration as typed fields: what each can hold, which were read, and what is said about the others.

Everything that is read is checked here, so that a rule of a family meets no value of another kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from bridge.flops.shapes import MAX_LAYERS, ConfigError, short

#: No dimension of a model is larger; a number of more digits is a mistake or an attack.
MAX_SIZE = 2**31 - 1
#: What transformers' config classes assume where a ``config.json`` is silent, by ``model_type``: only the fields that decide
#: something here.  Written by tests/config/sources/write_huggingface_defaults.py, checked by its test.
DEFAULTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("huggingface_defaults.json").read_text())


class Unread(ConfigError):
    """A model that its family's row does not describe: it is traced instead."""


# ---- what a field can hold -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldType:
    """Values that a field can have."""

    what: str
    fits: Callable[[Any], bool]

    def __or__(self, other: FieldType) -> FieldType:
        return FieldType(f"{self.what}, or {other.what}", lambda value: self.fits(value) or other.fits(value))


def _whole(most: int) -> FieldType:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

    return FieldType(f"a number: whole, 0 to {most}", fits)


def _real(least: float, most: float, what: str) -> FieldType:
    def fits(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most and isfinite(value)

    return FieldType(what, fits)


def _list(kind: FieldType, what: str) -> FieldType:
    def fits(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) <= MAX_LAYERS and all(map(kind.fits, value))

    return FieldType(f"a list of {what}, at most {MAX_LAYERS}", fits)


SIZE = _whole(MAX_SIZE)
DEPTH = _whole(MAX_LAYERS)
NUMBER = _real(-1e30, 1e30, "a number")
FRACTION = _real(0, 1, "a number from 0 to 1")
FLAG = FieldType("true or false", lambda value: isinstance(value, int) and value in (0, 1))
TEXT = FieldType(f"text of at most {MAX_LAYERS} characters", lambda value: isinstance(value, str) and len(value) <= MAX_LAYERS)
OBJECT = FieldType("an object with fields", lambda value: isinstance(value, Mapping))
INDEXES = _list(SIZE, "numbers")
WORDS = _list(TEXT, "words")
OBJECTS = _list(OBJECT, "objects with fields")

#: Every other field that is read is a size.
_NAMES = {
    DEPTH: """num_hidden_layers num_layers n_layer num_decoder_layers encoder_layers decoder_layers depth num_nextn_predict_layers
              num_mtp_layers num_mtp_modules mtp_num_hidden_layers""",
    NUMBER: """rms_norm_eps layer_norm_eps norm_eps norm_epsilon layer_norm_epsilon initializer_range init_std attention_dropout
               hidden_dropout_prob attention_probs_dropout_prob rope_theta factor routed_scaling_factor router_aux_loss_coef
               swiglu_limit moe_layer_end_index attn_pdrop layernorm_epsilon block_ffn_dim_multiplier""",
    FRACTION: "partial_rotary_factor pixel_shuffle_ratio downsample_ratio",
    FLAG: """tie_word_embeddings attention_bias mlp_bias attention_out_bias use_bias qkv_bias use_qk_norm use_sliding_window
             use_double_wide_mlp attention_k_eq_v enable_moe_block use_conv_bias mamba_proj_bias projectors_bias mamba_conv_bias
             mamba_rms_norm vision_use_head is_decoder add_cross_attention is_gated_act use_mtp patch_in_forward
             cross_attn_all_layers use_qkv_bias qk_layernorm use_parallel_residual use_post_norm multi_query parallel_attn alibi
             bias new_decoder_architecture enable_bias do_layer_norm_before layer_norm_elementwise_affine
             _remove_final_layer_norm lm_head_bias multimodal_projector_bias tie_embedding conv_bias block_auto_adjust_ff_dim
             add_swa_attention_sink_bias add_full_attention_sink_bias""",
    TEXT: """model_type hidden_act hidden_activation mlp_hidden_act activation_function activation feed_forward_proj dense_act_fn
             hybrid_override_pattern rope_type type position_embedding_type""",
    WORDS: "layer_types mlp_layer_types indexer_types layers_block_type",
    INDEXES: """mlp_only_layers no_rope_layers moe_layers fullatt_block_indexes deepstack_visual_indexes compress_ratios
                encoder_hash_byte_group_size attn_layer_indices full_attn_idxs""",
    OBJECTS: "block_configs",
    OBJECT: """text_config vision_config audio_config encoder_config decoder_config global_config patcher_config rope_parameters
              rope_scaling compress_rates per_layer_config full_attention""",
    # One number or one entry per layer.
    SIZE | INDEXES: "moe_layer_freq image_size patch_size",
    SIZE | TEXT: "mamba_d_head sliding_window_pattern mamba_dt_rank",
    FLAG | TEXT: "use_bidirectional_attention",
    WORDS | TEXT: "index_topk_pattern",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}


# ---- the fields ----------------------------------------------------------------------------------------------------


class Fields:
    """A Hugging Face configuration and its defaults; remembers what was read, so that nothing is ignored silently."""

    def __init__(self, values: Mapping[str, Any], defaults: str, place: str = "") -> None:
        self._values, self._defaults = values, DEFAULTS.get(defaults, {})
        self._read, self._skipped = set[str](), set[str]()
        self._kind = defaults
        self.place = place
        self.not_counted: list[str] = []

    def get(self, *names: str, kind: FieldType | None = None) -> Any:
        """The first of these fields that is set; where none is mentioned, the default; None for neither.

        A field that is there with the value null is mentioned: transformers keeps the null.

        Raises:
            ConfigError: the value is of another kind than the field's.
        """
        self._read.update(names)
        source = self._values if any(name in self._values for name in names) else self._defaults
        name = next((name for name in names if source.get(name) is not None), None)
        return None if name is None else self._checked(name, source[name], kind or _KINDS.get(name, SIZE))

    def size(self, *names: str) -> int:
        """A size that the architecture cannot do without.

        Raises:
            ConfigError: it is missing, null or 0, or no number.
        """
        value = self.get(*names)
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:  # both sides of a square
            value = value[0]
        if not value or isinstance(value, (list, tuple)):
            raise ConfigError(f"{self.place}{names[0]}={value!r} in the Hugging Face config must be a positive integer")
        return int(value)

    def mentioned(self, *names: str) -> dict[str, Any]:
        """Those of these fields that are there, null included."""
        return {name: self.get(name) for name in names if name in self._values}

    def skip(self, *names: str) -> None:
        """Fields that cannot change the work in this family, whatever their value."""
        self._skipped.update(names)

    def part(self, name: str) -> Fields:
        """A configuration inside this one (``vision_config``), with the defaults of its class."""
        return Fields(self.get(name) or {}, f"{self._kind}.{name}", f"{self.place}{name}.")

    def only(self, name: str, *values: Any) -> None:
        """A field that may hold these values alone, or be missing.

        Raises:
            Unread: it holds another, which no row describes.
        """
        self._read.add(name)
        given = self._values.get(name, self._defaults.get(name))
        if given is not None and given not in values:
            raise Unread(f"{self.place}{name}={short(given)} is not read")

    def group(self, *names: str) -> Fields:
        """The fields of an object that is not a configuration (``rope_parameters``); empty where there is none."""
        return Fields(self.get(*names, kind=OBJECT) or {}, "", f"{self.place}{names[0]}.")

    def report(self, names: str | tuple[str, ...], consequence: str) -> None:
        """Say what the counts leave out because of a field (the first of these that is set)."""
        several = (names,) if isinstance(names, str) else names
        name = next((name for name in several if self._values.get(name) is not None), several[0])
        self.not_counted.append(f"{self.place}{name}={short(self._values.get(name))}: {consequence}")

    def expect(self, name: str, built: Any) -> None:
        """Say so where a field that transformers does not look at asks for another model than is built."""
        self._read.add(name)
        given = self._values.get(name)
        if given is not None and given != built:
            self.report(name, f"transformers builds {short(built)}, and that is counted")

    def sentences(self) -> list[str]:
        """What was reported, then the fields that are set, not read, and not known to be neutral."""
        return self.not_counted + [
            f"not recognized: {self.place}{name}={short(value)} may change the work; if it does, that is not counted"
            for name, value in self._unread()
            if name not in NEUTRAL and not name.endswith(("_token_id", "_token_index"))
        ]

    def _unread(self) -> Iterator[tuple[str, Any]]:
        """Fields that are set (to more than zero, false or empty) and that no row or rule asked for."""
        for name, value in self._values.items():
            if value and name not in self._read | self._skipped and not str(name).startswith("_"):
                yield str(name), value

    def _checked(self, name: str, value: Any, kind: FieldType) -> Any:
        if not kind.fits(value):
            raise ConfigError(f"{self.place}{name}={short(value)} in the Hugging Face config must be {kind.what}")
        return value


# ---- what changes neither the work nor the parameters, in any family --------------------------------------------------

_OF_TRANSFORMERS = """
    model_type architectures transformers_version dtype torch_dtype auto_map id2label label2id problem_type
    return_dict output_attentions output_hidden_states output_router_logits use_cache is_encoder_decoder
    chunk_size_feed_forward tokenizer_class unsloth_version unsloth_fixed name_or_path gradient_checkpointing torchscript
    use_bfloat16 attn_implementation finetuning_task max_seq_length model_max_length output_past"""
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
    aux_loss_alpha seq_aux router_aux_loss_coef router_jitter_noise input_jitter_noise moe_router_dtype
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 scale_attn_weights"""
_MAMBA = """
    use_mamba_kernels mamba_hidden_act time_step_min time_step_max time_step_limit time_step_floor chunk_size
    mamba_chunk_size mamba_norm_before_gate lm_head_multiplier mlp_multipliers key_multiplier
    attention_out_multiplier attention_in_multiplier ssm_multipliers ssm_in_multiplier ssm_out_multiplier
    mamba_ssm_cache_dtype mamba_ssm_dtype rescale_prenorm_residual residual_in_fp32 num_logits_to_keep
    moe_shared_expert_overlap"""
_STORAGE = """
    quantization_config compression_config expert_dtype pretraining_tp ep_size experts_per_token tokens_per_second num_heads"""

NEUTRAL = frozenset(" ".join((_OF_TRANSFORMERS, _GENERATION, _POSITIONS, _ELEMENTWISE, _MAMBA, _STORAGE)).split())
