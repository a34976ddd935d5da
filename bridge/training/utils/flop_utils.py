"""FLOPs of a global batch, with the names and signatures of Megatron-Bridge's ``training.utils.flop_utils``.

``bridge.flops`` does the arithmetic; this module only turns the arguments into statistics.  All numbers are floating-point
operations of one training step: the forward and backward passes that run, with two operations per multiply-accumulate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

from bridge.data.packed.files import Locator
from bridge.data.packed.statistics import SequenceTable
from bridge.data.packed.statistics import calculate_avg_seqlen as calculate_avg_seqlen
from bridge.flops import conventions
from bridge.flops.closed_form import ClosedForm
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.lengths import amount, whole
from bridge.flops.moments import NOTHING, Moments
from bridge.flops.plan import Plan, compile_plan
from bridge.flops.plan_cache import PlanCache
from bridge.flops.reading import get, model_of, peft_of
from bridge.flops.shapes import ConfigError
from bridge.flops.statistics import FORWARD_PASSES
from bridge.integrations.megatron_bridge_flops import (
    GlobalFlopsRuntimeStats,
    accumulate_flops_metadata,
    get_model_chunk_vp_stage,
    resolve_global_flops_runtime_stats,
    resolve_global_flops_seqlen_stats,
    vision_patch_stats_from_grid_thw,
    vit_flops,
    vit_flops_from_grid_thw,
    vit_flops_from_patch_stats,
)
from bridge.integrations.megatron_bridge_flops import _packed_data_exists as _packed_data_exists

logger = logging.getLogger(__name__)

_SUMS = ("seqlen_sum", "seqlen_squared_sum", "cross_seqlen_sum", "cross_seqlen_product_sum")
#: Averages of packed fine-tuning files, by file identity (path, size and time of every shard), global batch size and sequence
#: length; the latest ``_LORA_SEQ_STATS_CAPACITY`` of them.
_lora_seq_stats_cache: dict[Any, tuple[Any, Any, Any, Any]] = {}
_LORA_SEQ_STATS_CAPACITY = 64

_packed_file = Locator()


class _Known(NamedTuple):
    """The content of a configuration, read once and kept until the configuration changes."""

    plan: Plan | None
    own_price: Callable[..., Any] | None
    """The price function of a model that has its own; such a model needs no plan."""
    nominal: int | None
    """model.seq_length."""
    adapted: bool
    """Whether PEFT is on."""
    by_pass: bool
    """Whether some of the work runs once per forward pass, regardless of the tokens (DoRA)."""
    text: ClosedForm | None
    """The price of a text-only batch from its moments."""


def _read(cfg: Any, convention: str) -> _Known:
    model, adapted = model_of(cfg), get(cfg, "peft") is not None
    own_price = None if any(peft_of(cfg)) else _own_price(model)
    plan = compile_plan(cfg, convention) if own_price is None else None
    for sentence in plan.not_counted if plan else ():
        _warn_once(sentence)
    return _Known(
        plan,
        own_price,
        get(model, "seq_length") or get(cfg, "seq_length"),
        adapted,
        plan is not None and FORWARD_PASSES in plan.statistics,
        None if plan is None else plan.text_form(),
    )


@cache
def _warn_once(sentence: str) -> None:
    logger.warning("num_floating_point_operations: %s", sentence)


_known = {name: PlanCache(partial(_read, convention=name)) for name in CONVENTIONS}


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
        cfg: a configuration with ``.model`` (and optionally ``.peft``, ``.train`` and ``.dataset``), a model configuration, or
            a mapping, with megatron-core's field names.
        batch_size: number of sequences in the global batch. One forward pass has ``cfg.train.micro_batch_size`` of them, or
            all of them if that is not set.
        seqlen_sum: sum of the sequence lengths in tokens. The default is batch_size x model.seq_length or, with PEFT and a
            packed file (``cfg.dataset.packed_sequence_specs``), the average of batch_size rows of that file.
        seqlen_squared_sum: sum of the squared sequence lengths, which determines the attention core. By default all sequences
            have the mean length.
        num_vision_patches: number of patches of all images in the batch, before merging.
        cross_seqlen_sum: sum of the key/value lengths of cross attention, in tokens.
        cross_seqlen_product_sum: sum of query length x key/value length of cross attention.
        convention: ``megatron``, ``maxtext``, ``exact``, ``executed`` or ``palm``. Sums of lengths only estimate the work of
            windows and top-k, so prefer ``compile_plan(cfg).flops(sequence_lengths=...)`` if you know the lengths.

    Returns:
        The FLOPs as an int, or as a Fraction if the convention gives no integer.

    Raises:
        ConfigError: A required field is missing or impossible, a sum is not a number, or no lengths have these sums.
    """
    # Text-only batches are the common case, and this function is called every step.
    if type(batch_size) is type(seqlen_sum) is type(seqlen_squared_sum) is int and cross_seqlen_sum is None:
        if not num_vision_patches and batch_size > 0 and 0 <= seqlen_sum <= seqlen_squared_sum <= seqlen_sum * seqlen_sum:
            known = _known.get(convention)
            text = None if known is None else known.of(cfg).text
            if text is not None and (flops := text.flops(batch_size, seqlen_sum, seqlen_squared_sum)) is not None:
                return flops
    if type(batch_size) is not int or batch_size < 0:
        batch_size = whole("batch_size", batch_size)
    patches: int | Fraction = 0
    if type(num_vision_patches) is not int or num_vision_patches:
        patches = amount("num_vision_patches", num_vision_patches)
    if convention not in _known:
        conventions.get(convention)
    plan, own_price, nominal, adapted, by_pass, _ = _known[convention].of(cfg)
    if own_price is not None or plan is None:
        assert own_price is not None
        return own_price(batch_size, seqlen_sum, seqlen_squared_sum, cross_seqlen_sum, cross_seqlen_product_sum)
    others = {}
    if patches:
        others["images"] = Moments.of(batch_size, patches)
    if cross_seqlen_sum is not None:
        others["encoder"] = Moments.of(batch_size, amount("cross_seqlen_sum", cross_seqlen_sum))
        product = 0 if cross_seqlen_product_sum is None else cross_seqlen_product_sum
        others["cross"] = Moments.of(batch_size, amount("cross_seqlen_product_sum", product))
    if by_pass and batch_size:
        passes = Fraction(batch_size, get(get(cfg, "train"), "micro_batch_size") or batch_size)
        others["micro_batches"] = Moments.of(passes, passes)
    if adapted and seqlen_sum is None and seqlen_squared_sum is None:
        averages = _packed_averages(cfg, batch_size, nominal)
        if averages is not None:
            return _price_of_rows(plan, averages, batch_size, nominal, others)
    if seqlen_sum is None:
        if nominal is None:
            raise ConfigError("model.seq_length is missing: set it, or pass seqlen_sum")
        seqlen_sum = batch_size * nominal
        if seqlen_squared_sum is None and type(seqlen_sum) is int:
            seqlen_squared_sum = seqlen_sum * nominal
    sequences = Moments.of(batch_size, seqlen_sum, seqlen_squared_sum, nominal)
    return plan.evaluate(plan.measure_moments(sequences, **others) if others else plan.measure_moments(sequences))


def _own_price(model: Any) -> Callable[..., Any] | None:
    """The price function of a model that has its own, else None; a hook with runtime sums takes precedence."""
    with_sums = getattr(model, "_get_num_floating_point_operations_with_runtime_stats", None)
    if callable(with_sums):
        return lambda batch_size, *sums: with_sums(batch_size=batch_size, **dict(zip(_SUMS, map(_sum, _SUMS, sums), strict=True)))
    plain = getattr(model, "_get_num_floating_point_operations", None)
    return (lambda batch_size, *sums: plain(batch_size)) if callable(plain) else None


def _sum(name: str, value: Any) -> int | Fraction | None:
    return None if value is None else amount(name, value)


def _packed_averages(cfg: Any, batch_size: int, seq_length: int | None) -> tuple[Any, Any, Any, Any] | None:
    """The averages of the packed file that a configuration trains on; None if there is no such file."""
    found = _packed_file(cfg)
    if found is None:
        return None
    global_batch_size = get(get(cfg, "train"), "global_batch_size") or max(batch_size, 1)
    key = (found.shards, global_batch_size, seq_length)
    averages = _lora_seq_stats_cache.get(key)
    if averages is None:
        averages = calculate_avg_seqlen(found.dataset_file, global_batch_size, seq_length, drop_remainder=True)
        while len(_lora_seq_stats_cache) >= _LORA_SEQ_STATS_CAPACITY:
            _lora_seq_stats_cache.pop(next(iter(_lora_seq_stats_cache)))
        _lora_seq_stats_cache[key] = averages
    return averages


def _price_of_rows(
    plan: Plan, averages: tuple[Any, Any, Any, Any], rows: int, nominal: int | None, others: dict[str, Moments]
) -> int | Fraction:
    """FLOPs of a batch of packed rows, exact with a table of lengths and estimated with averages alone."""
    if not isinstance(averages, SequenceTable):
        number, total, _, squares = (rows * Fraction(average) for average in averages)
        # ``Moments.of`` would refuse these: the mean of the rows' squares can exceed the square of their mean.
        typical = nominal or (total / number if number else 0)
        return plan.evaluate(plan.measure_moments(Moments(number, total, squares, typical), **others))
    flops = rows * averages.price(plan)
    if others:
        flops += plan.evaluate(plan.measure_moments(NOTHING, **others))
    return flops.numerator if flops.denominator == 1 else flops


__all__ = [
    "GlobalFlopsRuntimeStats",
    "SequenceTable",
    "accumulate_flops_metadata",
    "calculate_avg_seqlen",
    "get_model_chunk_vp_stage",
    "num_floating_point_operations",
    "resolve_global_flops_runtime_stats",
    "resolve_global_flops_seqlen_stats",
    "vision_patch_stats_from_grid_thw",
    "vit_flops",
    "vit_flops_from_grid_thw",
    "vit_flops_from_patch_stats",
]
