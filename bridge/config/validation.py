"""Checks that types cannot express: ranges, options that exclude each other, sizes that must divide.

Each rule is a generator of sentences; the first sentence becomes the error.  A sentence names option, value and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf
from operator import attrgetter

from bridge.config.schema import Config
from bridge.flops.reading import read_layout
from bridge.flops.shapes import ConfigError

Rule = Callable[[Config], Iterator[str]]

#: Smallest and largest allowed value -> their options; one that is unset (None) passes.
_RANGES = {
    (1, inf): """
        model.num_layers model.hidden_size model.ffn_hidden_size model.num_attention_heads model.num_query_groups
        model.kv_channels model.vocab_size model.make_vocab_size_divisible_by model.seq_length model.num_moe_experts
        model.moe_router_topk model.moe_ffn_hidden_size parallel.tensor_model_parallel_size
        parallel.pipeline_model_parallel_size parallel.virtual_pipeline_model_parallel_size
        parallel.num_layers_in_first_pipeline_stage parallel.num_layers_in_last_pipeline_stage parallel.context_parallel_size
        parallel.expert_model_parallel_size parallel.expert_tensor_parallel_size train.train_iters train.global_batch_size
        train.micro_batch_size train.eval_interval data.max_documents data.min_document_length data.images_per_sample
        optimizer.lr_decay_iters logger.log_interval checkpoint.save_interval checkpoint.keep peft.dim hardware.peak_flops
    """,
    (0, inf): """
        model.mtp_num_layers model.moe_shared_expert_intermediate_size train.seed train.eval_iters data.num_workers
        optimizer.lr optimizer.min_lr optimizer.lr_warmup_iters optimizer.weight_decay optimizer.clip_grad
    """,
    (0.01, inf): "train.distributed_timeout_minutes",
    (3, inf): "data.longest_line",
    (0, 1): """
        peft.dropout data.eval_fraction model.hidden_dropout model.attention_dropout model.rotary_percent
        optimizer.adam_beta1 optimizer.adam_beta2
    """,
}
_NEEDED_TO_TRAIN = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "seq_length")


def validate(cfg: Config) -> None:
    """Raise :class:`ConfigError` for the first rule that a configuration breaks, for any number of ranks."""
    of_model = (_ranges, _required, _tensor_parallel, _pipeline_parallel, _context_parallel, _experts)
    of_training = (_batch, _evaluation, _instructions, _optimizer, _recompute, _callbacks)
    _raise_first(cfg, (*of_model, *of_training))


def validate_layout(cfg: Config, world_size: int) -> None:
    """Raise :class:`ConfigError` if the parallel layout or the batch does not fit this number of ranks."""
    _raise_first(cfg, (lambda cfg: _layout(cfg, world_size),))


def layout_problems(cfg: Config) -> list[str]:
    """Reasons why a model cannot be built on its parallel layout, one sentence each; its FLOPs can still be counted."""
    return [problem for rule in (_tensor_parallel, _context_parallel, _experts) for problem in rule(cfg)]


def data_parallel_size(cfg: Config, world_size: int) -> int:
    """Model replicas: the ranks divided by tensor, pipeline and context parallelism."""
    parallel = cfg.parallel
    return world_size // (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    )


def _raise_first(cfg: Config, rules: tuple[Rule, ...]) -> None:
    for rule in rules:
        for problem in rule(cfg):
            raise ConfigError(problem)


def _get(cfg: Config, option: str) -> float | None:
    section, name = option.split(".")
    owner = getattr(cfg, section)
    return None if owner is None else getattr(owner, name)


def _named(cfg: Config, option: str) -> str:
    return f"{option}={attrgetter(option)(cfg)}"


def _divisors(number: int) -> str:
    """Those up to 64."""
    return ", ".join(str(divisor) for divisor in range(1, min(number, 64) + 1) if number % divisor == 0)


def _indivisible(cfg: Config, number: str, by: str, factor: int = 1) -> Iterator[str]:
    """Complain if one option is not divisible by another (times a fixed factor)."""
    value, divisor = _get(cfg, number), _get(cfg, by)
    if value is not None and divisor is not None and int(value) % (int(divisor) * factor):
        times = f"{factor} x " if factor > 1 else ""
        yield (
            f"{_named(cfg, number)} is not divisible by {times}{_named(cfg, by)}; "
            f"{by} may be {_divisors(int(value) // factor)}, or change {number}"
        )


def _ranges(cfg: Config) -> Iterator[str]:
    for (least, most), options in _RANGES.items():
        for option in options.split():
            value = _get(cfg, option)
            if value is not None and (value < least or value > most):
                yield f"{option}={value} is out of range; give at {f'least {least}' if value < least else f'most {most}'}"


def _required(cfg: Config) -> Iterator[str]:
    hybrid = cfg.model.hybrid_layer_pattern is not None
    for name in _NEEDED_TO_TRAIN:
        if getattr(cfg.model, name) is None and not (hybrid and name == "num_layers"):
            yield f"model.{name} is not set; set it in the recipe or add model.{name}=... to the command"


def _tensor_parallel(cfg: Config) -> Iterator[str]:
    size = "parallel.tensor_model_parallel_size"
    yield from _indivisible(cfg, "model.num_attention_heads", size)
    yield from _indivisible(cfg, "model.ffn_hidden_size", size)
    ranks, groups = cfg.parallel.tensor_model_parallel_size, cfg.model.num_query_groups
    if groups and groups % ranks and ranks % groups:
        yield (
            f"{_named(cfg, 'model.num_query_groups')} is neither a multiple nor a divisor of {_named(cfg, size)}; "
            f"{size} may be {_divisors(groups)}"
        )
    if cfg.parallel.sequence_parallel and ranks == 1:
        yield f"parallel.sequence_parallel=true needs tensor parallelism; set {size} above 1 or sequence_parallel=false"
    if cfg.parallel.sequence_parallel and cfg.model.seq_length:
        yield from _indivisible(cfg, "model.seq_length", size)


def _pipeline_parallel(cfg: Config) -> Iterator[str]:
    stages = cfg.parallel.pipeline_model_parallel_size
    chunks = cfg.parallel.virtual_pipeline_model_parallel_size or 1
    first, last = cfg.parallel.num_layers_in_first_pipeline_stage, cfg.parallel.num_layers_in_last_pipeline_stage
    if chunks > 1 and stages == 1:
        yield (
            f"parallel.virtual_pipeline_model_parallel_size={chunks} needs a pipeline; "
            "set parallel.pipeline_model_parallel_size above 1 or leave it unset"
        )
    if cfg.model.num_layers is None or stages == 1:
        return
    try:
        read_layout(cfg).place(cfg.model.num_layers, cfg.model.mtp_num_layers or 0)
    except ConfigError:
        uneven = {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}
        given = "".join(f", {name}={size}" for name, size in uneven.items() if size is not None)
        yield (
            f"model.num_layers={cfg.model.num_layers} does not split over "
            f"parallel.pipeline_model_parallel_size={stages} x virtual_pipeline_model_parallel_size={chunks}{given}; use "
            f"sizes whose product divides it ({_divisors(cfg.model.num_layers)}), or set "
            "parallel.num_layers_in_first_pipeline_stage and parallel.num_layers_in_last_pipeline_stage"
        )


def _context_parallel(cfg: Config) -> Iterator[str]:
    # Each rank takes one slice from the front and one from the back, so that causal work is even.
    if cfg.parallel.context_parallel_size > 1:
        yield from _indivisible(cfg, "model.seq_length", "parallel.context_parallel_size", factor=2)


def _experts(cfg: Config) -> Iterator[str]:
    size = "parallel.expert_model_parallel_size"
    model, parallel = cfg.model, cfg.parallel
    if model.num_moe_experts is None:
        if parallel.expert_model_parallel_size > 1:
            yield f"{_named(cfg, size)} needs experts; set model.num_moe_experts or {size}=1"
        return
    yield from _indivisible(cfg, "model.num_moe_experts", size)
    if model.moe_router_topk > model.num_moe_experts:
        yield (
            f"model.moe_router_topk={model.moe_router_topk} is more than "
            f"model.num_moe_experts={model.num_moe_experts}; a token can visit each expert only once"
        )
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        yield (
            f"{_named(cfg, 'parallel.tensor_model_parallel_size')} with experts needs sequence parallelism; "
            "set parallel.sequence_parallel=true"
        )
    if isinstance(model.moe_layer_freq, list) and len(model.moe_layer_freq) != model.num_layers:
        yield (
            f"model.moe_layer_freq has {len(model.moe_layer_freq)} entries for "
            f"model.num_layers={model.num_layers}; give one per layer, or an integer"
        )


def _batch(cfg: Config) -> Iterator[str]:
    yield from _indivisible(cfg, "train.global_batch_size", "train.micro_batch_size")
    ramp = cfg.train.rampup_batch_size
    if ramp is None:
        return
    if len(ramp) != 3 or min(ramp) < 1:
        yield f"train.rampup_batch_size={ramp} must be [start, increment, samples], all positive"
    elif ramp[0] > cfg.train.global_batch_size or (cfg.train.global_batch_size - ramp[0]) % ramp[1]:
        yield (
            f"train.rampup_batch_size={ramp} does not reach train.global_batch_size={cfg.train.global_batch_size} "
            f"from {ramp[0]} in steps of {ramp[1]}; change start or increment"
        )


def _evaluation(cfg: Config) -> Iterator[str]:
    if cfg.train.eval_interval is None:
        return
    if cfg.train.eval_iters == 0:
        yield f"{_named(cfg, 'train.eval_interval')} with train.eval_iters=0 evaluates nothing; set train.eval_iters"
    if cfg.data.eval_fraction == 0:
        yield f"{_named(cfg, 'train.eval_interval')} with data.eval_fraction=0 has no text; set data.eval_fraction"


def _instructions(cfg: Config) -> Iterator[str]:
    specs, kind = cfg.data.packed_sequence_specs, cfg.data.kind
    if kind == "instructions" and cfg.data.batching != "packed":
        yield f"data.batching={cfg.data.batching}: instructions are always packed; set data.batching=packed"
    if specs is None:
        return
    name = "data.packed_sequence_specs"
    if kind != "instructions":
        yield f"{name} with data.kind={kind} is not read; set data.kind=instructions, or leave it out"
    if specs.packed_sequence_size is not None and specs.packed_sequence_size < 2:
        yield f"{name}.packed_sequence_size={specs.packed_sequence_size} is out of range; give at least 2"
    if specs.packed_val_data_path is not None and specs.packed_train_data_path is None:
        yield f"{name}.packed_val_data_path={specs.packed_val_data_path} needs packed_train_data_path; set both"
    evaluates = cfg.train.eval_interval is not None
    if evaluates and specs.packed_train_data_path is not None and specs.packed_val_data_path is None:
        yield (
            f"train.eval_interval={cfg.train.eval_interval} has no rows to evaluate on; set {name}.packed_val_data_path, or "
            "leave train.eval_interval out"
        )


def _optimizer(cfg: Config) -> Iterator[str]:
    optimizer = cfg.optimizer
    if optimizer.min_lr > optimizer.lr:
        yield f"optimizer.min_lr={optimizer.min_lr} is above optimizer.lr={optimizer.lr}; lower it"
    decay = optimizer.lr_decay_iters or cfg.train.train_iters
    if optimizer.lr_warmup_iters >= decay:
        yield (
            f"optimizer.lr_warmup_iters={optimizer.lr_warmup_iters} leaves no step of the {decay} for the decay; "
            "lower it, or raise optimizer.lr_decay_iters or train.train_iters"
        )
    if optimizer.overlap_param_gather and not (optimizer.use_distributed_optimizer and optimizer.overlap_grad_reduce):
        yield (
            "optimizer.overlap_param_gather=true needs optimizer.use_distributed_optimizer=true "
            "and optimizer.overlap_grad_reduce=true"
        )


def _recompute(cfg: Config) -> Iterator[str]:
    model = cfg.model
    if model.recompute_granularity not in (None, "full", "selective"):
        yield f"model.recompute_granularity={model.recompute_granularity} must be full or selective"
    if model.recompute_granularity == "full":
        if model.recompute_method not in ("uniform", "block"):
            yield f"model.recompute_method={model.recompute_method}: full recomputation needs uniform or block"
        if not model.recompute_num_layers:
            yield f"model.recompute_num_layers={model.recompute_num_layers}: full recomputation needs a number"


def _callbacks(cfg: Config) -> Iterator[str]:
    for number, spec in enumerate(cfg.callbacks):
        if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
            yield (
                f"callbacks[{number}]={spec!r} must be a mapping with `_target_`, "
                "for example {_target_: bridge.training.callbacks.ThroughputCallback}"
            )


def _layout(cfg: Config, world_size: int) -> Iterator[str]:
    parallel, train = cfg.parallel, cfg.train
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    expert_tensor = parallel.expert_tensor_parallel_size or tensor
    replica = tensor * pipeline * parallel.context_parallel_size
    if world_size % replica:
        yield (
            f"{world_size} ranks cannot hold whole replicas of parallel.tensor_model_parallel_size={tensor} x "
            f"pipeline_model_parallel_size={pipeline} x context_parallel_size={parallel.context_parallel_size} = "
            f"{replica} ranks; start a multiple of {replica} ranks (torchrun --nproc-per-node) or lower a size"
        )
        return
    experts = expert_tensor * parallel.expert_model_parallel_size * pipeline
    if cfg.model.num_moe_experts and world_size % experts:
        yield (
            f"{world_size} ranks cannot hold all experts at parallel.expert_model_parallel_size="
            f"{parallel.expert_model_parallel_size} x expert_tensor_parallel_size={expert_tensor} x "
            f"pipeline_model_parallel_size={pipeline} = {experts} ranks; "
            f"start a multiple of {experts} ranks or lower a size"
        )
    replicas = world_size // replica
    samples = train.micro_batch_size * replicas
    for name, size in {"train.global_batch_size": train.global_batch_size, **_ramp_sizes(cfg)}.items():
        if size % samples:
            yield (
                f"{name}={size} is not divisible by train.micro_batch_size={train.micro_batch_size} x {replicas} "
                f"data-parallel replicas = {samples}; use a multiple of {samples}"
            )
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    micro_batches = train.global_batch_size // samples
    if chunks > 1 and micro_batches % pipeline:
        yield (
            f"train.global_batch_size={train.global_batch_size} gives {micro_batches} micro-batches per replica; the "
            f"interleaved schedule needs a multiple of parallel.pipeline_model_parallel_size={pipeline}, "
            f"so use a global batch size that is a multiple of {samples * pipeline}"
        )


def _ramp_sizes(cfg: Config) -> dict[str, int]:
    if cfg.train.rampup_batch_size is None:
        return {}
    start, increment, _ = cfg.train.rampup_batch_size
    return {"train.rampup_batch_size[0]": start, "train.rampup_batch_size[1]": increment}
