"""megatron-core's optimizer and learning-rate schedule from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from bridge.training.engine.model import uses_bf16

if TYPE_CHECKING:
    from bridge.config.schema import Config

_WSD_DECAY_FRACTION = 0.1
"""Share of the steps that the warmup-stable-decay schedule spends on its decay (Hu et al. 2024, MiniCPM)."""


def build_optimizer(cfg: Config, model: list[Any]) -> MegatronOptimizer:
    """Optimizer over all chunks of this rank; biases and norms have no weight decay."""
    options = cfg.optimizer
    bf16 = uses_bf16(cfg.model)
    config = OptimizerConfig(
        optimizer=options.optimizer,
        lr=options.lr,
        min_lr=options.min_lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_eps=options.adam_eps,
        clip_grad=options.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=options.use_distributed_optimizer,
        overlap_param_gather=options.overlap_param_gather,
    )
    return get_megatron_optimizer(
        config,
        model,
        config_overrides=get_standard_config_overrides(config),
        use_gloo_process_groups=False,
    )


def build_scheduler(cfg: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Learning rate and weight decay, counted in optimizer steps.

    On a resume the options of this run apply; only the number of steps comes from the checkpoint.
    """
    options = cfg.optimizer
    decay = options.lr_decay_iters or cfg.train.train_iters
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=options.lr,
        min_lr=options.min_lr,
        lr_warmup_steps=options.lr_warmup_iters,
        lr_decay_steps=decay,
        lr_decay_style=options.lr_decay_style,
        start_wd=options.weight_decay,
        end_wd=options.weight_decay,
        wd_incr_steps=cfg.train.train_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=max(1, round(decay * _WSD_DECAY_FRACTION)),
        lr_wsd_decay_style="linear",
    )
