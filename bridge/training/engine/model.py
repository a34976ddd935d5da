"""Builds megatron-core's GPTModel from a configuration, wrapped for data parallelism, one chunk per virtual pipeline stage."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from bridge.flops.components.registry import MIXERS, PARTS
from bridge.flops.layer_pattern import local_layers
from bridge.flops.reading import read
from bridge.flops.rows import Mixer, Part
from bridge.flops.shapes import ConfigError
from bridge.training.engine.activations import FUNCTIONS
from bridge.training.engine.attention import SegmentAttention
from bridge.training.engine.norm import Norm, ReplicatedNorm
from bridge.training.engine.vision import VisionLanguageModel, tower_config
from bridge.training.engine.vision_limits import check_vision
from bridge.training.peft import add_adapters, check_peft

if TYPE_CHECKING:
    from bridge.config.schema import Config, ModelConfig

# Options that can be counted but that megatron-core's GPTModel lacks -> the value that means "absent".
_NOT_TRAINABLE: Mapping[str, Any] = {
    "hybrid_layer_pattern": None,
    "is_hybrid_model": False,
    "attention_chunk_size": None,
    "global_kv_channels": None,
    "global_num_query_groups": None,
    "global_attention_k_eq_v": False,
    "num_kv_shared_layers": None,
    "use_double_wide_mlp": False,
    "is_causal": True,
    "layernorm_placement": "pre",
    "layernorm_learned": True,
    "v_channels": None,
}

# Read by the functions below and not copied by name.
_TRANSLATED = {
    "activation_func",
    "bf16",
    "window_size",
    "window_attn_skip_freq",
    "no_rope_freq",
    "moe_layer_freq",
    "qk_layernorm",
    "transformer_impl",
    "tensor_model_parallel_size",
}


def uses_transformer_engine(model: ModelConfig) -> bool:
    """Whether Transformer Engine builds the layers: by option, or because it is installed and there is a GPU."""
    installed = importlib.util.find_spec("transformer_engine") is not None and torch.cuda.is_available()
    if model.transformer_impl == "transformer_engine" and not installed:
        raise ConfigError(
            "model.transformer_impl=transformer_engine needs the package transformer_engine and a GPU. Install it, or "
            "use model.transformer_impl=local."
        )
    return installed and model.transformer_impl != "local"


def uses_bf16(model: ModelConfig) -> bool:
    """Whether matmuls run in bfloat16: as ``model.bf16`` says; if it is unset, on CUDA."""
    return torch.cuda.is_available() if model.bf16 is None else model.bf16


def check_trainable(cfg: Config) -> None:
    """Raise ConfigError for what can be counted but not trained here."""
    rows: list[Mixer | Part] = [*MIXERS.values(), *PARTS.values()]
    absent = {row.option: None for row in rows if row.option and not row.trains}
    for option, without in {**absent, **_NOT_TRAINABLE}.items():
        value = getattr(cfg.model, option)
        if value != without and (value or without is True):
            raise ConfigError(
                f"model.{option}={value!r} can be counted (bridge flops) but not trained, because megatron-core's GPTModel "
                "does not have it. Choose another model for training."
            )
    check_vision(cfg)
    if cfg.peft is not None:
        check_peft(cfg, uses_transformer_engine(cfg.model))
    local = not uses_transformer_engine(cfg.model)
    needs_engine = {
        "fp8": cfg.model.fp8 is not None,
        "softmax_type": cfg.model.softmax_type != "vanilla",
        "moe_token_dispatcher_type": cfg.model.moe_token_dispatcher_type == "flex",
        "moe_grouped_gemm": cfg.model.moe_grouped_gemm,
    }
    for option, used in needs_engine.items():
        if local and used:
            raise ConfigError(
                f"model.{option}={getattr(cfg.model, option)} needs a GPU and Transformer Engine. Install it, or leave "
                "the option out."
            )
    if cfg.parallel.pipeline_model_parallel_size > 1 and cfg.data.batching != "fixed":
        if cfg.model.moe_token_dispatcher_type == "allgather":
            raise ConfigError(
                "model.moe_token_dispatcher_type=allgather cannot handle micro-batches of different lengths in a "
                "pipeline. Use alltoall, or data.batching=fixed."
            )


def window_of(model: ModelConfig) -> tuple[tuple[int, int] | None, Any]:
    """megatron-core's ``window_size`` (tokens to the left and right) and ``window_attn_skip_freq``, equal to what is counted."""
    if not model.window:
        return None, None
    skip = model.window_attn_skip_freq
    if model.interleaved_attn_pattern is not None:
        skip = local_layers(model, model.num_layers or 0)
    return (model.window - 1, 0), list(map(int, skip)) if isinstance(skip, (list, tuple)) else skip


def transformer_config(cfg: Config) -> TransformerConfig:
    """megatron-core's configuration: options of the same name are copied, the others are derived here."""
    model, parallel = cfg.model, cfg.parallel
    cls = MLATransformerConfig if model.multi_latent_attention else TransformerConfig
    known = {field.name for field in dataclasses.fields(cls)}
    copied = {
        field.name: getattr(section, field.name)
        for section in (model, parallel)
        for field in dataclasses.fields(section)
        if field.name in known - _TRANSLATED
    }
    bf16 = uses_bf16(model)
    dtype = torch.bfloat16 if bf16 else torch.float32
    engine = uses_transformer_engine(model)
    window, skip = window_of(model)
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    derived: dict[str, Any] = {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "bf16": bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "autocast_dtype": dtype,
        "transformer_impl": "transformer_engine" if engine else "local",
        "activation_func": FUNCTIONS[model.activation],
        "window_size": window,
        "window_attn_skip_freq": skip,
        "no_rope_freq": list(model.no_rope_freq) if isinstance(model.no_rope_freq, tuple) else model.no_rope_freq,
        "moe_layer_freq": list(model.moe_layer_freq) if isinstance(model.moe_layer_freq, tuple) else model.moe_layer_freq,
        "qk_layernorm": bool(model.qk_layernorm),
        # A step's loss is the mean over all its tokens, however unevenly they lie over ranks and micro-batches.
        "calculate_per_token_loss": True,
        # Padded and packed micro-batches differ in length: each stage announces the shape it sends.
        "variable_seq_lengths": parallel.pipeline_model_parallel_size > 1 and cfg.data.batching != "fixed",
        # With two stages and several chunks both neighbors are the same rank. Batched sends would be matched in order of
        # arrival, which mixes up activations and gradients without an error.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # Kernels of Apex or Transformer Engine that only exist on a GPU.
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
    }
    if model.multi_latent_attention:
        derived["rope_type"] = "rope"
        derived["num_query_groups"] = None  # every head has its own keys and values
    try:
        return cls(**{**copied, **derived})
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"model: megatron-core refuses this combination: {error}") from error


def build_model(cfg: Config, device: torch.device) -> list[DistributedDataParallel]:
    """Build this rank's part of the model, one wrapped chunk per virtual pipeline stage.

    megatron-core's parallel state must be initialized and its random numbers seeded.
    """
    config = transformer_config(cfg)
    stages = cfg.parallel.virtual_pipeline_model_parallel_size
    chunks: list[torch.nn.Module] = []
    for stage in range(stages or 1):
        chunk: torch.nn.Module = _gpt(cfg, config, None if stages is None else stage)
        add_adapters(chunk, cfg.peft, shape=read(cfg).shape, seed=cfg.train.seed)
        for parameter in chunk.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        chunk = chunk.to(device)
        chunks.append(Float16Module(config, chunk) if config.bf16 else chunk)
    overlap = cfg.optimizer.overlap_grad_reduce
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.bf16,
        overlap_grad_reduce=overlap,
        overlap_param_gather=cfg.optimizer.overlap_param_gather,
        use_distributed_optimizer=cfg.optimizer.use_distributed_optimizer,
        # Megatron-LM's rule: large enough for the collective to be efficient at this number of replicas.
        bucket_size=max(40_000_000, 1_000_000 * parallel_state.get_data_parallel_world_size()) if overlap else None,
    )
    # Only the first chunk is split into buckets: the gradients of the others are ready late anyway.
    return [
        DistributedDataParallel(config=config, ddp_config=ddp, module=chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]


def _gpt(cfg: Config, config: TransformerConfig, vp_stage: int | None) -> GPTModel:
    """One pipeline stage of the model: megatron-core's class and layer specs; local layers get our norm and core attention."""
    model = cfg.model
    engine = config.transformer_impl == "transformer_engine"
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=engine, normalization=config.normalization, vp_stage=vp_stage
    )
    mtp = None
    if config.mtp_num_layers:
        layers = get_gpt_decoder_layer_specs(config, use_transformer_engine=engine, normalization=config.normalization)
        mtp = get_gpt_mtp_block_spec(config, layers[-1], use_transformer_engine=engine, vp_stage=vp_stage)
    if not engine:
        spec, mtp = _substitute(spec), _substitute(mtp)
    assert model.seq_length is not None
    vision = read(cfg).vision
    kind: Callable[..., GPTModel] = GPTModel
    if vision is not None:
        assert model.image_token_id is not None
        tower = tower_config(config, vision)
        kind = partial(
            VisionLanguageModel,
            vision=vision,
            vision_config=tower,
            vision_layer=_vision_layer(tower),
            image_token_id=model.image_token_id,
        )
    return kind(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=read(cfg).shape.built_vocab_size,
        max_sequence_length=model.max_position_embeddings or model.seq_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=int(model.rotary_base),
        rope_scaling=model.rope_scaling,
        rope_scaling_factor=model.rope_scaling_factor,
        mtp_block_spec=mtp,
        vp_stage=vp_stage,
    )


def _vision_layer(config: TransformerConfig) -> ModuleSpec:
    """One block of a tower: megatron-core's layer with bidirectional attention."""
    engine = config.transformer_impl == "transformer_engine"
    (layer, *_) = get_gpt_decoder_layer_specs(config, use_transformer_engine=engine, normalization=config.normalization)
    attention = dataclasses.replace(layer.submodules.self_attention, params={"attn_mask_type": AttnMaskType.no_mask})
    submodules = dataclasses.replace(layer.submodules, self_attention=attention)
    layer = dataclasses.replace(layer, submodules=submodules)
    return layer if engine else _substitute(layer)


_LOCAL_MODULES: Mapping[Any, Any] = {WrappedTorchNorm: Norm, DotProductAttention: SegmentAttention}


def _substitute(spec: Any) -> Any:
    """A layer spec in which ours replace megatron-core's local norm and core attention, recursively."""
    if isinstance(spec, type):
        return _LOCAL_MODULES.get(spec, spec)
    if isinstance(spec, (list, tuple)) and not isinstance(spec, str):
        return type(spec)(_substitute(part) for part in spec)
    if not dataclasses.is_dataclass(spec):
        return spec
    parts = {field.name: _substitute(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
    if isinstance(spec, MLASelfAttentionSubmodules) and parts["q_layernorm"] is Norm:
        parts["q_layernorm"] = ReplicatedNorm
    return dataclasses.replace(spec, **parts)
