"""Planning arithmetic: how long a training run takes, what it costs, what a budget buys, and what a pipeline wastes.

Inputs may be ranges (an MFU between 0.35 and 0.45); every result is then a range.  Compute-optimal sizes follow Hoffmann et al.
(arXiv:2203.15556, "Chinchilla"), batch sizes DeepSeek-AI (arXiv:2401.02954), pipeline bubbles Narayanan et al.
(arXiv:2104.04473).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt

from bridge.flops.shapes import ConfigError, whole

Number = int | float | Fraction

SECONDS_PER_HOUR = 3600
HOURS_PER_DAY = 24

#: Tokens per parameter at which a dense model spends its compute best (arXiv:2203.15556, table 3).
CHINCHILLA_TOKENS_PER_PARAMETER = 20
#: The rule of thumb behind it: training FLOPs per parameter and token.
FLOPS_PER_PARAMETER_AND_TOKEN = 6
#: Batch of lowest loss in tokens = factor x FLOPs ^ exponent (arXiv:2401.02954, equation 1).
OPTIMAL_BATCH_FACTOR, OPTIMAL_BATCH_EXPONENT = 0.2920, 0.3271


@dataclass(frozen=True)
class Range:
    """A positive quantity between two bounds; products and quotients keep every value in between.

    Attributes:
        low, high: the bounds, equal where the quantity is known.
    """

    low: Number
    high: Number

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"{self.low}-{self.high} is not a range: the first number must not exceed the second")

    @classmethod
    def of(cls, value: Number | Range) -> Range:
        """A number as a range of one value; a range as it is."""
        return value if isinstance(value, Range) else cls(value, value)

    @property
    def is_known(self) -> bool:
        """Whether it is one number."""
        return self.low == self.high

    def map(self, function: Callable[[Number], Number]) -> Range:
        """A growing function of the quantity."""
        return Range(function(self.low), function(self.high))

    def __mul__(self, other: Number | Range) -> Range:
        factor = Range.of(other)
        return Range(self.low * factor.low, self.high * factor.high)

    __rmul__ = __mul__

    def __truediv__(self, other: Number | Range) -> Range:
        divisor = Range.of(other)
        return Range(_divide(self.low, divisor.high), _divide(self.high, divisor.low))


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return Fraction(a) / b


# ---- a training run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Devices that train together.

    Attributes:
        devices: number of devices.
        peak_flops: dense peak per device in FLOP/s.
        mfu: the fraction of it that becomes model FLOPs.
        price: price per device-hour in any currency; None if not needed.
        power: power per device in W, with its share of the host and the cooling; None if not needed.
    """

    devices: Range
    peak_flops: float
    mfu: Range
    price: Range | None = None
    power: Range | None = None

    def __post_init__(self) -> None:
        for name, value in (("devices", self.devices.low), ("peak_flops", self.peak_flops), ("mfu", self.mfu.low)):
            if value <= 0:
                raise ConfigError(f"{name}={value} must be positive")
        if self.mfu.high > 1:
            raise ConfigError(f"mfu={float(self.mfu.high):g} must be a fraction of the peak, at most 1")

    @property
    def flops_per_device_hour(self) -> Range:
        """Model FLOPs that one device does in an hour."""
        return self.mfu * self.peak_flops * SECONDS_PER_HOUR


@dataclass(frozen=True)
class TrainingRun:
    """What it takes to train on a number of tokens.

    Attributes:
        flops_per_token: training FLOPs per token, from a plan.
        tokens: number of training tokens.
        cluster: the devices that train.
    """

    flops_per_token: Number
    tokens: Range
    cluster: Cluster

    @property
    def flops(self) -> Range:
        """Model FLOPs of the whole run."""
        return self.tokens * self.flops_per_token

    @property
    def device_hours(self) -> Range:
        """Hours of one device, over all devices."""
        return self.flops / self.cluster.flops_per_device_hour

    @property
    def days(self) -> Range:
        """Days from start to end, without interruptions."""
        return self.device_hours / self.cluster.devices / HOURS_PER_DAY

    @property
    def energy(self) -> Range | None:
        """kWh."""
        return None if self.cluster.power is None else self.device_hours * self.cluster.power / 1000

    @property
    def cost(self) -> Range | None:
        """Cost in the currency of the price."""
        return None if self.cluster.price is None else self.device_hours * self.cluster.price


def _per_price(cluster: Cluster) -> Range:
    if cluster.price is None:
        raise ConfigError("a budget in money needs the price per device-hour: give price")
    return cluster.flops_per_device_hour / cluster.price


def _per_energy(cluster: Cluster) -> Range:
    if cluster.power is None:
        raise ConfigError("a budget in kWh needs the power per device: give power")
    return cluster.flops_per_device_hour / cluster.power * 1000


#: What a budget may be given in -> model FLOPs that one of it buys.
BUDGETS: dict[str, Callable[[Cluster], Range]] = {
    "flop": lambda cluster: Range.of(1),
    "days": lambda cluster: cluster.flops_per_device_hour * cluster.devices * HOURS_PER_DAY,
    "device-hours": lambda cluster: cluster.flops_per_device_hour,
    "money": _per_price,
    "kwh": _per_energy,
}


def within_budget(flops_per_token: Number, budget: Range, unit: str, cluster: Cluster) -> TrainingRun:
    """The longest run that a budget pays for.

    Args:
        flops_per_token: training FLOPs per token, from a plan.
        budget: the budget in ``unit``.
        unit: a key of :data:`BUDGETS`.
        cluster: the devices that train.
    """
    if unit not in BUDGETS:
        raise ConfigError(f"budget in {unit!r} is not known; give it in one of {', '.join(BUDGETS)}")
    tokens = budget * BUDGETS[unit](cluster) / flops_per_token
    return TrainingRun(flops_per_token, tokens.map(int), cluster)


def steps(tokens: Range, tokens_per_step: int) -> Range:
    """Optimizer steps that train on this many tokens; the last one may be smaller."""
    return tokens.map(lambda value: ceil(_divide(value, tokens_per_step)))


def optimal_batch_tokens(flops: Range) -> Range:
    """Tokens of a batch of lowest loss for a compute budget (arXiv:2401.02954)."""
    return flops.map(lambda value: OPTIMAL_BATCH_FACTOR * float(value) ** OPTIMAL_BATCH_EXPONENT)


# ---- compute-optimal sizes -----------------------------------------------------------------------


@dataclass(frozen=True)
class ComputeOptimal:
    """How Chinchilla would have spent the same compute.

    Attributes:
        parameters: parameters of a dense model.
        tokens: tokens that it would be trained on.
    """

    parameters: Range
    tokens: Range


def compute_optimal(flops: Range) -> ComputeOptimal:
    """The dense model and the tokens for a compute budget C = 6 N D with D = 20 N."""
    per_square = FLOPS_PER_PARAMETER_AND_TOKEN * CHINCHILLA_TOKENS_PER_PARAMETER
    parameters = flops.map(lambda value: sqrt(value / per_square))
    return ComputeOptimal(parameters, parameters * CHINCHILLA_TOKENS_PER_PARAMETER)


def chinchilla_tokens(parameters: int) -> int:
    """Tokens at which a dense model of that size spends its compute best."""
    return CHINCHILLA_TOKENS_PER_PARAMETER * parameters


# ---- pipelines -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PipelineBound:
    """The best that a pipeline can reach if only FLOPs take time.

    Attributes:
        imbalance: work of the largest stage over the mean.
        micro_batches: per pipeline and step.
        bubble: fraction of the devices' time that is idle even so: 1 - work / (stages x time).
    """

    imbalance: float
    micro_batches: int
    bubble: float

    @property
    def efficiency(self) -> float:
        """Fraction of the devices' time that works: the bound on MFU over that of one stage alone."""
        return 1 - self.bubble


def pipeline_bound(stages: Sequence[Number], micro_batches: int, chunks: int = 1) -> PipelineBound:
    """The bubble that no one-forward-one-backward schedule avoids.

    Stage i works on every micro-batch; before its first one every stage above must have done one forward pass of it, after
    its last one they must still do one backward pass.  With the interleaved schedule only a chunk of each stage.  For equal
    stages that is (p - 1) / chunks over micro_batches + (p - 1) / chunks.

    Args:
        stages: work of each stage, in any unit.
        micro_batches: per pipeline and step.
        chunks: virtual_pipeline_model_parallel_size.
    """
    whole("micro_batches", micro_batches)
    work = [Fraction(stage) for stage in stages]
    total = sum(work)
    if not total:
        return PipelineBound(1.0, micro_batches, 0.0)
    above, time = Fraction(0), Fraction(0)
    for stage in work:  # work of one step: micro_batches times that of one micro-batch
        time = max(time, stage + above / micro_batches / chunks)
        above += stage
    mean = total / len(work)
    return PipelineBound(float(max(work) / mean), micro_batches, float(1 - mean / time))
