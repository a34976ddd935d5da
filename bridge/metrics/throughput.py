"""Computes the logged keys from the totals of an interval: pure arithmetic, without clock, tensor or trainer.

Rates need a valid duration: without one (a first interval of warm-up alone, a clock that went back, NaN) they are left out,
and the totals remain.  MFU and HFU need a peak and are left out without one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.metrics.instruments import Measured
from bridge.metrics.peak import UNKNOWN, Peak

Metrics = dict[str, int | float]

TERA = 1e12


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of the whole job over some steps, as integers summed over all ranks.

    Attributes:
        steps: optimizer steps.
        flops: model FLOPs; None if the model cannot be priced, or no micro-batch could be read.
        hardware_flops: the same with recomputed forward passes.
        formats, hardware_formats: both by number format; empty where the model cannot be priced.
        tokens: real tokens; None if no micro-batch could be read. positions: with padding. sequences: non-empty sequences.
        unlearned_tokens: tokens of skipped steps, computed but not learned from.
        unread_micro_batches: micro-batches whose lengths could not be read; without their work all else is a lower bound.
        data_wait_seconds: time in ``next(data_iterator)``, mean over the replicas.
        replica_work: work of each data-parallel replica, any unit. stage_work: FLOPs of each pipeline stage.
    """

    steps: int
    flops: int | None
    tokens: int | None
    hardware_flops: int | None = None
    formats: Mapping[str, int] = field(default_factory=dict)
    hardware_formats: Mapping[str, int] = field(default_factory=dict)
    positions: int = 0
    sequences: int = 0
    unlearned_tokens: int = 0
    unread_micro_batches: int = 0
    data_wait_seconds: float = 0.0
    replica_work: Sequence[int] = ()
    stage_work: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One log interval.

    Attributes:
        work: everything since the last log point.
        timed: the part of it that ``seconds`` covers: all but the warm-up step.
        seconds: duration of the timed part, without evaluation and checkpoints.
        components: FLOPs of ``work`` by component; they add up to ``work.flops``.
        total_flops, total_tokens: since the first step of training; None if unknown.
        lower_bound: whether these totals miss work that could not be read.
        world_size: number of ranks. peak: peak of one device.
        overhead_seconds: time that counting and reporting took on this rank in the timed part.
        measured: findings of instruments about the timed part, by what they measure; unknown ones are absent.
        statistics: statistics of ``work`` by name, from which it can be priced later in another convention.
    """

    work: Work
    timed: Work
    seconds: float
    world_size: int
    total_flops: int | None
    total_tokens: int | None
    lower_bound: bool = False
    components: Mapping[str, int] = field(default_factory=dict)
    peak: Peak = UNKNOWN
    overhead_seconds: float | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)


def throughput(interval: Interval) -> Metrics:
    """The keys and values to log for one interval; :mod:`bridge.metrics.keys` has their units."""
    work, timed = interval.work, interval.timed
    metrics: Metrics = {}
    if _positive(interval.seconds) and timed.steps > 0:
        metrics |= _rates(timed, interval.seconds, interval.world_size) | _utilisation(interval)
        if interval.overhead_seconds is not None:
            metrics["throughput/overhead_ms"] = 1e3 * interval.overhead_seconds / timed.steps
        for measured in interval.measured.values():
            metrics |= measured.metrics(interval)
    if work.positions and work.tokens is not None:
        metrics["throughput/padding_fraction"] = 1 - work.tokens / work.positions
    metrics |= _imbalance("data_parallel", work.replica_work) | _imbalance("pipeline", work.stage_work)
    if work.unlearned_tokens:
        metrics["throughput/unlearned_tokens"] = work.unlearned_tokens
    if work.unread_micro_batches:
        metrics["throughput/unread_micro_batches"] = work.unread_micro_batches
    for component, flops in interval.components.items():
        metrics[f"throughput/flops/{component}"] = flops
    if work.flops is not None:
        metrics |= {f"throughput/statistics/{name}": value for name, value in interval.statistics.items()}
    if interval.total_flops is not None:
        metrics["throughput/total_flops"] = interval.total_flops
    if interval.total_tokens is not None:
        metrics["throughput/total_tokens"] = interval.total_tokens
    if interval.lower_bound:
        metrics["throughput/incomplete"] = 1
    return metrics


def _rates(timed: Work, seconds: float, world_size: int) -> Metrics:
    rates: Metrics = {
        "throughput/step_time": seconds / timed.steps,
        "throughput/data_wait_fraction": timed.data_wait_seconds / seconds,
    }
    if timed.tokens is not None:
        rates["throughput/tokens_per_sec"] = timed.tokens / seconds
        rates["throughput/device/tokens_per_sec"] = timed.tokens / seconds / world_size
        rates["throughput/samples_per_sec"] = timed.sequences / seconds
    if timed.flops is not None:
        rates["throughput/tflops"] = timed.flops / seconds / TERA
        rates["throughput/tflops/device"] = timed.flops / seconds / world_size / TERA
    return rates


def _utilisation(interval: Interval) -> Metrics:
    """MFU and HFU: the time that the work takes at the peaks of its formats, over the time it took."""
    timed, measured = interval.timed, interval.measured.values()
    work = {
        "mfu": _with(interval.peak, timed.flops, timed.formats, [getattr(one, "model_flops", {}) for one in measured]),
        "hfu": _with(
            interval.peak, timed.hardware_flops, timed.hardware_formats, [getattr(one, "hardware_flops", {}) for one in measured]
        ),
    }
    used = {name: flops for name, flops in timed.formats.items() if flops}
    metrics: Metrics = {}
    if used.keys() - {"bf16"}:
        work["mfu_bf16"] = timed.flops, interval.peak.by_format.get("bf16")
    if len(used) > 1:
        metrics = {f"throughput/format_fraction/{name}": flops / sum(used.values()) for name, flops in used.items()}
    if interval.peak.of(timed.formats) is None:
        work = {}
    for name, (flops, peak) in work.items():
        if flops is not None and peak is not None and _positive(peak):
            metrics[f"throughput/{name}"] = flops / interval.seconds / (peak * interval.world_size)
    return metrics


def _with(
    peak: Peak, flops: int | None, formats: Mapping[str, int], others: Sequence[Mapping[str, int]]
) -> tuple[int | None, float | None]:
    """FLOPs of the model and those that instruments found beside them, and the peak for their mix of number formats."""
    beside: Counter[str] = Counter()
    for one in others:
        beside.update(one)
    if flops is None or not any(beside.values()):
        return flops, peak.of(formats)
    together = beside + Counter(formats)
    # A peak without formats is that of the model's format; it holds for 16-bit formats too, and for no others.
    strange = not peak.by_format and any(beside[name] for name in beside.keys() - {*formats, "bf16", "fp16"})
    return flops + sum(beside.values()), None if strange else peak.of(together)


def _imbalance(name: str, work: Sequence[int]) -> Metrics:
    """Max/mean; empty for fewer than two parts or no work."""
    if len(work) < 2 or not any(work):
        return {}
    return {f"throughput/imbalance/{name}": max(work) * len(work) / sum(work)}


def _positive(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and number > 0


def doubts(metrics: Mapping[str, int | float]) -> list[str]:
    """A sentence on what cannot be true about these numbers, with the likely causes; empty if there are no doubts."""
    above = [name for name in ("mfu", "hfu") if metrics.get(f"throughput/{name}", 0) > 1]
    if not above:
        return []
    names = " and ".join(f"{name.upper()} {metrics[f'throughput/{name}']:.2f}" for name in above)
    return [
        f"{names}: no device is faster than its peak. Likely causes: hardware.peak_flops or hardware.device_name is "
        "wrong; the matmuls run in another number format than the configuration says; the convention "
        "counts more than the kernels compute (attention without its causal half); the seconds miss some of the work."
    ]
