"""FLOPs of a global batch, with the names and signatures of Megatron-Bridge's ``training.utils.flop_utils``.

The arithmetic lives in ``bridge.flops``; this module only turns the arguments into statistics.  Units are floating-point
operations of one training step: forward and backward as they run, two per multiply-accumulate.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from bridge.data.packed_statistics import PackedStatistics, find_packed_file, table_key
from bridge.data.packed_statistics import calculate_avg_seqlen as calculate_avg_seqlen
from bridge.flops.model_shape import ConfigError, get, model_of, read_vision
from bridge.flops.moments import NOTHING, Moments
from bridge.flops.plan import Plan, compile_plan, compile_vision_plan
from bridge.flops.plan_cache import PlanCache

#: Sequence statistics of packed fine-tuning files, by file identity, global batch size and sequence length.
_lora_seq_stats_cache: dict[Any, tuple[Any, Any, Any, Any]] = {}

_plans: dict[str, PlanCache[Plan]] = {}


def _plan(cfg: Any, convention: str) -> Plan:
    if convention not in _plans:
        _plans[convention] = PlanCache(lambda cfg: compile_plan(cfg, convention))
    return _plans[convention](cfg)


def num_floating_point_operations(
    cfg: Any,
    batch_size: int = 1,
    seqlen_sum: float | None = None,
    seqlen_squared_sum: float | None = None,
    num_vision_patches: float = 0,
    cross_seqlen_sum: float | None = None,
    cross_seqlen_product_sum: float | None = None,
    *,
    convention: str = "megatron",
) -> int | Fraction:
    """FLOPs of one training step over a global batch.

    Args:
        cfg: a configuration with ``.model`` (and, where they exist, ``.peft``, ``.train``, ``.dataset``), a model config, or
            a mapping; megatron-core's field names.
        batch_size: sequences in the global batch.
        seqlen_sum: sum of their lengths in tokens; batch_size x model.seq_length when None.
        seqlen_squared_sum: sum of their squared lengths, which drives the attention core; all of the mean length when None.
        num_vision_patches: patches of all images of the batch, before merging.
        cross_seqlen_sum, cross_seqlen_product_sum: key/value lengths, and query x key/value lengths, of cross attention:
            for models that price themselves.
        convention: ``megatron``, ``exact`` or ``executed``; sums of lengths only estimate what windows and top-k need, so
            prefer ``compile_plan(cfg).flops(sequence_lengths=...)`` where the lengths are known.

    Returns:
        An int; a Fraction where the convention itself is not integral.

    Raises:
        ConfigError: a required field is missing or impossible.
    """
    if batch_size < 0:
        raise ConfigError(f"batch_size={batch_size} must not be negative")
    model = model_of(cfg)
    peft = get(cfg, "peft")
    if peft is None:
        priced = _own_price(model, batch_size, seqlen_sum, seqlen_squared_sum, cross_seqlen_sum, cross_seqlen_product_sum)
        if priced is not None:
            return priced
    nominal = get(model, "seq_length")
    if peft is not None and seqlen_sum is None and seqlen_squared_sum is None:
        seqlen_sum, seqlen_squared_sum = _packed_sums(cfg, batch_size)
    if seqlen_sum is None:
        if nominal is None:
            raise ConfigError("model.seq_length is missing: set it, or pass seqlen_sum")
        seqlen_sum = batch_size * nominal
    plan = _plan(cfg, convention)
    sequences = Moments.of(batch_size, seqlen_sum, seqlen_squared_sum, nominal)
    images = Moments.of(batch_size, num_vision_patches) if num_vision_patches > 0 else NOTHING
    return plan.evaluate(plan.measure_moments(sequences, images))


def vit_flops(cfg: Any, batch_size: int, num_patches: float) -> int | Fraction:
    """FLOPs of training a vision tower on ``batch_size`` images of ``num_patches`` patches each.

    Returns:
        Training FLOPs in the ``megatron`` convention; 0 without a vision_config or for non-positive patches.
    """
    if num_patches <= 0 or batch_size <= 0:
        return 0
    plan = _vision_plans(cfg)
    if plan is None:
        return 0
    images = Moments.of(batch_size, batch_size * Fraction(num_patches))
    return plan.evaluate(plan.measure_moments(NOTHING, images))


def _compile_vision(cfg: Any) -> Plan | None:
    return compile_vision_plan(cfg) if read_vision(cfg) is not None else None


_vision_plans: PlanCache[Plan | None] = PlanCache(_compile_vision)


def _own_price(model: Any, batch_size: int, *sums: Any) -> Any:
    """What a model that prices itself says; None for the others.  Its hook with runtime sums wins over the one without."""
    with_sums = getattr(model, "_get_num_floating_point_operations_with_runtime_stats", None)
    if callable(with_sums):
        names = ("seqlen_sum", "seqlen_squared_sum", "cross_seqlen_sum", "cross_seqlen_product_sum")
        return with_sums(batch_size=batch_size, **dict(zip(names, sums, strict=True)))
    plain = getattr(model, "_get_num_floating_point_operations", None)
    return plain(batch_size) if callable(plain) else None


def _packed_sums(cfg: Any, batch_size: int) -> tuple[Any, Any]:
    """Sum and sum of squares of the lengths of a batch of packed rows; (None, None) without a packed file."""
    path = find_packed_file(cfg)
    if path is None:
        return None, None
    size = get(model_of(cfg), "seq_length")
    global_batch_size = get(get(cfg, "train"), "global_batch_size") or batch_size
    key = table_key(path, global_batch_size, size)
    if key not in _lora_seq_stats_cache:
        _lora_seq_stats_cache[key] = calculate_avg_seqlen(path, global_batch_size, size, True)
    _, tokens, _, squares = _lora_seq_stats_cache[key]
    return batch_size * Fraction(tokens), batch_size * Fraction(squares)


__all__ = ["PackedStatistics", "calculate_avg_seqlen", "num_floating_point_operations", "vit_flops"]
