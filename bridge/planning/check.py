"""Compare a reported throughput with every convention: find the one it was counted in, or the usual mistake behind it.

    tokens per second and device x FLOPs per token = FLOP/s per device;  divided by the dense peak: MFU

The tokens per second are measured; the FLOPs per token depend on a convention.  So a reported number reveals its convention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Any

from bridge.config import read_config
from bridge.flops.conventions import Convention
from bridge.flops.lengths import exact
from bridge.flops.moments import Number
from bridge.flops.plan import compile_plan
from bridge.flops.reading import Model, get, read
from bridge.flops.shapes import ConfigError, short
from bridge.hardware import NUMBER_FORMATS, find_peak
from bridge.planning import counting_rules
from bridge.planning.counting_rules import RULES, WAYS, Case, Priced, Rule
from bridge.planning.quantities import Quantity
from bridge.text import significant

#: A count agrees with a reported number within this fraction, or within the number's rounding.
TOLERANCE = 0.01
#: The convention that differences are relative to.
OURS = "megatron"


@dataclass(frozen=True)
class CountedWay:
    """The run counted in one way.

    Attributes:
        convention: name of the convention.
        rules: names from ``counting_rules.RULES`` that were applied to it.
        flops_per_token: training FLOPs per token, or hardware FLOPs if the report includes recomputation.
        flops_per_second: FLOP/s per device; None if no speed is known.
        utilisation: fraction of the dense peak; None if no peak or no speed is known.
        ratio: this count over the reported number; None if nothing was reported.
    """

    convention: str
    rules: tuple[str, ...]
    flops_per_token: Number
    flops_per_second: float | None
    utilisation: float | None
    ratio: float | None

    @property
    def name(self) -> str:
        """``megatron``, or ``megatron with windows_ignored``."""
        return self.convention + (f" with {', '.join(self.rules)}" if self.rules else "")

    @property
    def says(self) -> tuple[str, ...]:
        """Descriptions of its rules."""
        return tuple(RULES[name].says for name in self.rules)

    @property
    def distance(self) -> float:
        """Distance from the reported number as a fraction of it; infinite if nothing was reported."""
        return float("inf") if self.ratio is None else abs(self.ratio - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; utilizations are fractions."""
        return {**asdict(self), "name": self.name, "says": self.says, "flops_per_token": float(self.flops_per_token)}


@dataclass(frozen=True)
class Check:
    """A run, what was reported about it, and the result of every way of counting; counts are computed on demand.

    Attributes:
        name: name of the model.
        case: what ran.
        assumed: rules that every count starts from.
        tokens_per_second: tokens per second per device; None if unknown.
        rounding: possible rounding error of that speed, as a fraction of it.
        reported: the reported number with its unit; None if nothing was reported.
        reported_parameters: the reported number of parameters; None if not reported.
    """

    name: str
    case: Case
    assumed: tuple[Rule, ...] = ()
    tokens_per_second: Fraction | None = None
    rounding: float = 0.0
    reported: Quantity | None = None
    reported_parameters: Quantity | None = None

    # ---- counting --------------------------------------------------------------------------------

    def under(self, convention: str | Convention, *rules: str) -> CountedWay:
        """The run counted by a convention, with ``counting_rules`` in addition to the assumed ones."""
        return self._way(counting_rules.way(convention), tuple(map(counting_rules.get, rules)))

    def _way(self, convention: Convention, rules: Sequence[Rule]) -> CountedWay:
        case, every = self.case, (*self.assumed, *rules)
        per_token = Fraction(self._flops(convention, every)) / case.tokens
        rate, peak = 1.0, 1.0
        for rule in every:
            rate, peak = rate * float(rule.rate(case)), peak * float(rule.peak(case))
        speed = None if self.tokens_per_second is None else float(per_token * self.tokens_per_second) * rate
        utilisation = None if speed is None or case.peak is None else speed / (case.peak * peak)
        ratio = None
        if self.reported is not None:
            ours = speed if self.reported.unit == "FLOP/s" else utilisation
            ratio = None if ours is None else ours / float(self.reported.number)
        return CountedWay(convention.name, tuple(rule.name for rule in every), per_token, speed, utilisation, ratio)

    def _flops(self, convention: Convention, rules: Sequence[Rule]) -> Number:
        """FLOPs of the batch."""
        priced = Priced(self.case, self.case.model, convention, self.case.passes)
        for rule in rules:
            priced = rule.applied(priced)
        flops = None
        for rule in rules:
            flops = rule.price(priced, flops)
        return priced.flops if flops is None else flops

    @cached_property
    def conventions(self) -> tuple[CountedWay, ...]:
        """The run by every convention, and by PaLM's rule without the input embedding."""
        return tuple(self._way(convention, ()) for convention in WAYS)

    @cached_property
    def mistakes(self) -> tuple[CountedWay, ...]:
        """The run by every usual mistake on top of each convention, where it changes anything."""
        return tuple(self._mistakes())

    def _mistakes(self) -> Iterator[CountedWay]:
        seen = set()
        for rule in RULES.values():
            if rule in self.assumed:
                continue
            for convention, plain in zip(WAYS, self.conventions, strict=True):
                way = self._way(convention, (rule,))
                numbers = (way.flops_per_token, way.flops_per_second, way.utilisation)
                if _told_apart(way, plain) and numbers not in seen:
                    seen.add(numbers)
                    yield way

    # ---- judging ---------------------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """How far a count may be from the reported number: one percent, or the rounding of both numbers."""
        rounding = 0.0 if self.reported is None else float(self.reported.rounding / self.reported.number)
        return max(TOLERANCE, rounding + self.rounding)

    def agrees(self, way: CountedWay) -> bool:
        """Whether the reported number agrees with this count."""
        return way.distance <= self.tolerance

    @property
    def fits(self) -> tuple[CountedWay, ...]:
        """The conventions that give the reported number, nearest first."""
        return tuple(sorted(filter(self.agrees, self.conventions), key=_nearness))

    @property
    def explanations(self) -> tuple[CountedWay, ...]:
        """The usual mistakes that would give the reported number, nearest first, each on top of the convention it fits best."""
        best: dict[tuple[str, ...], CountedWay] = {}
        for way in sorted(filter(self.agrees, self.mistakes), key=_nearness):
            best.setdefault(way.rules, way)
        return tuple(best.values())

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The model's parameters: ``total``, ``active`` and ``trainable``."""
        return compile_plan(self.case.model, "exact").parameters()

    @property
    def parameters_agree(self) -> bool | None:
        """Whether the reported number of parameters is the model's, within its rounding; None if not reported."""
        if self.reported_parameters is None:
            return None
        rounding = self.reported_parameters.rounding
        away = abs(Fraction(self.parameters["total"]) - Fraction(self.reported_parameters.number))
        return away <= (rounding if rounding > Fraction(1, 2) else 0)  # a number given with all digits must match exactly

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        if self.reported is not None:
            yield self._about_speed()
        if self.reported_parameters is not None:
            told, ours = float(self.reported_parameters.number), self.parameters["total"]
            yield f"The model has {ours:,} parameters, {'as' if self.parameters_agree else 'not the'} reported ({told:,.12g})."
        if self.reported is None and self.reported_parameters is None:
            yield f"Nothing was reported; {OURS} gives {self.shown(self.under(OURS))}."

    def _about_speed(self) -> str:
        assert self.reported is not None
        told = shown_quantity(self.reported)
        if self.fits:
            best, ours = self.fits[0], self.under(OURS)
            others = [way.name for way in self.fits[1:]]
            also = f" (so do{'es' if len(others) == 1 else ''} {', '.join(others)})" if others else ""
            sentence = f"{told} is what {best.name} counts: {self.shown(best)}, {_percent(best)}{also}"
            if self.agrees(ours):
                return sentence + "."
            return f"{sentence}; {OURS} gives {self.shown(ours)}, {_percent(ours)}, because of {self._because(best)}."
        known = self.explanations
        if known:
            listed = "; ".join(f"{way.name}: {self.shown(way)}, {_percent(way)} ({way.says[-1]})" for way in known[:3])
            return f"No convention gives {told} within {self.tolerance:.2g}, but a usual mistake would: {listed}."
        near = min(self.conventions, key=lambda way: way.distance)
        return (
            f"{told} fits no convention and no usual mistake: the nearest, {near.name}, gives {self.shown(near)}, "
            f"{_percent(near)}; the tokens per second, the model or the reported number must be wrong."
        )

    def components(self, way: CountedWay) -> dict[str, float]:
        """FLOPs per token by component; ``added`` is what a rule adds outside the components."""
        priced = Priced(self.case, self.case.model, counting_rules.way(way.convention), self.case.passes)
        for name in way.rules:
            priced = RULES[name].applied(priced)
        parts = {name: float(Fraction(flops) / self.case.tokens) for name, flops in priced.components.items()}
        beside = float(way.flops_per_token) - sum(parts.values())
        return parts | ({"added": beside} if abs(beside) > 1e-9 * float(way.flops_per_token) else {})

    def gaps(self, way: CountedWay, to: CountedWay) -> dict[str, float]:
        """How much one way counts beyond another by component, as fractions of the other's total, largest first."""
        ours, theirs = self.components(to), self.components(way)
        total = float(to.flops_per_token)
        found = {name: (theirs.get(name, 0.0) - ours.get(name, 0.0)) / total for name in {**ours, **theirs}}
        return {name: found[name] for name in sorted(found, key=lambda name: -abs(found[name])) if abs(found[name]) >= 0.0005}

    def _because(self, best: CountedWay) -> str:
        """The components whose counts differ most from ours, in percent of ours."""
        gaps = self.gaps(best, self.under(OURS))
        return ", ".join(f"{name} ({gap:+.1%})" for name, gap in list(gaps.items())[:3]) or "what the number is compared with"

    def shown(self, way: CountedWay) -> str:
        """A count in the unit of the reported number."""
        if self.reported is not None and self.reported.unit == "%":
            return "unknown" if way.utilisation is None else f"{way.utilisation:.2%}"
        if way.flops_per_second is None:
            return f"{significant(way.flops_per_token / 10**9)} GFLOP per token"
        return f"{significant(way.flops_per_second / 1e12)} TFLOP/s"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values: FLOP/s per device, utilizations as fractions."""
        reported, parameters = self.reported, self.reported_parameters
        return {
            "name": self.name,
            "sequence_lengths": list(self.case.lengths),
            "passes": self.case.passes,
            "devices": self.case.devices,
            "peak_flops": self.case.peak,
            "tokens_per_second": None if self.tokens_per_second is None else float(self.tokens_per_second),
            "assumed": [rule.name for rule in self.assumed],
            "reported": None if reported is None else {"value": float(reported.number), "unit": reported.unit},
            "reported_parameters": None if parameters is None else float(parameters.number),
            "parameters": self.parameters,
            "parameters_agree": self.parameters_agree,
            "tolerance": self.tolerance,
            "conventions": [way.to_dict() for way in self.conventions],
            "mistakes": [way.to_dict() for way in self.mistakes],
            "fits": [way.name for way in self.fits],
            "explanations": [way.name for way in self.explanations],
            "verdict": self.verdict,
        }


def shown_quantity(quantity: Quantity) -> str:
    """``800 TFLOP/s``, ``41.25%``."""
    number = float(quantity.number)
    return f"{number * 100:.6g}%" if quantity.unit == "%" else f"{number / 1e12:,.6g} TFLOP/s"


def _nearness(way: CountedWay) -> float:
    """A rounded distance, so that equally near ways keep their order."""
    return round(way.distance, 3)


def _told_apart(way: CountedWay, plain: CountedWay) -> bool:
    """Whether a rule changes the result: the ratio, if something was reported."""
    if way.ratio is not None:
        return way.ratio != plain.ratio
    return way.flops_per_token != plain.flops_per_token or way.utilisation != plain.utilisation


def _percent(way: CountedWay) -> str:
    return f"{(way.ratio or 0) - 1:+.1%}"


# ---- from what people know -------------------------------------------------------------------------------------------


def check(
    cfg: Any,
    *,
    sequence_length: int | None = None,
    sequence_lengths: Sequence[int] = (),
    image_patches: Sequence[int] = (),
    tokens_per_second: Any = None,
    step_time: Any = None,
    global_batch_size: int | None = None,
    devices: int = 1,
    device_name: str | None = None,
    number_format: str = "bf16",
    peak_flops: float | None = None,
    reported: str | Quantity | None = None,
    parameters: str | int | Quantity | None = None,
    recompute: str | None = None,
    whole_job: bool = False,
    assume: Sequence[str] = (),
) -> Check:
    """Compare what was reported about a run with every way of counting it.

    Args:
        cfg: anything that ``compile_plan`` accepts, such as a recipe's name.
        sequence_length: tokens per row; by default the configuration's.
        sequence_lengths: tokens of each document of a batch, instead of ``sequence_length``.
        image_patches: patches of each image of that batch.
        tokens_per_second: tokens per second per device. The digits of a string tell how the number was rounded; this also
            holds for ``step_time``.
        step_time: seconds per step of ``global_batch_size`` rows on all ``devices``, instead of ``tokens_per_second``.
        global_batch_size: rows per step.
        devices: devices of the whole job.
        device_name: as ``bridge devices`` or torch names it; only a utilization needs it.
        number_format: the number format whose dense peak a utilization refers to.
        peak_flops: that peak in FLOP/s, overriding the table.
        reported: ``800TFLOP/s`` or ``41%``, with all the digits that were printed.
        parameters: the reported number of parameters, ``3.6B`` or all digits.
        recompute: ``full`` or ``selective`` if the reported number includes recomputation (HFU).
        whole_job: whether tokens_per_second and a reported FLOP/s are totals over all devices.
        assume: names from ``counting_rules.RULES`` that the report is known to follow.

    Raises:
        ConfigError: Something is missing or impossible; the message names it.

    >>> found = check("llama3-8b", tokens_per_second=13812, reported="711TFLOP/s")
    >>> found.verdict
    '711 TFLOP/s is what megatron counts: 710.9 TFLOP/s, -0.0% (so do maxtext, exact).'
    >>> found.under("megatron", "full_square").name
    'megatron with full_square'
    """
    config = read_config(cfg) if isinstance(cfg, str) else cfg
    model = _recomputing(read(config), recompute)
    lengths = _lengths(model, sequence_length, sequence_lengths)
    if len(image_patches) and all(statistic.over != "images" for statistic in compile_plan(model, "exact").statistics):
        raise ConfigError("image_patches has no effect because this model has no vision tower to price; leave it out")
    if devices < 1:
        raise ConfigError(f"devices={devices} must be 1 or more")
    ranks = _ranks(config)
    if devices > 1 and devices % prod(ranks.values()):
        raise ConfigError(f"devices={devices} is not a multiple of the {prod(ranks.values())} of one replica ({_named(ranks)})")
    peaks = _peaks(device_name, number_format, peak_flops)
    share = devices if whole_job else 1
    told = _quantity("reported", reported, ("FLOP/s", "%"))
    if told is not None and told.unit == "FLOP/s" and share > 1:
        told = replace(told, value=told.value / share, rounding=told.rounding / share)
    if told is not None and told.unit == "%" and number_format not in peaks:
        raise ConfigError("reported is a fraction of a peak: give device_name or peak_flops")
    speed, rounding = _speed(tokens_per_second, share, step_time, global_batch_size, devices, lengths)
    if told is not None and speed is None:
        raise ConfigError("reported needs the speed of the run: give tokens_per_second, or step_time and global_batch_size")
    case = Case(
        model,
        lengths,
        tuple(image_patches),
        "hardware" if recompute else "training",
        devices,
        ranks,
        peaks,
        number_format,
    )
    rules = tuple(map(counting_rules.get, assume))
    size = _quantity("parameters", str(parameters) if isinstance(parameters, int) else parameters, ("",))
    return Check(get(config, "name") or "model", case, rules, speed, rounding, told, size)


def _recomputing(model: Model, recompute: str | None) -> Model:
    if recompute is None or model.language is None:
        return model
    if recompute not in ("full", "selective"):
        raise ConfigError(f"recompute={short(recompute)} must be full or selective")
    method = "uniform" if recompute == "full" else None
    return replace(model, language=replace(model.language, recompute_granularity=recompute, recompute_method=method))


def _lengths(model: Model, length: int | None, lengths: Sequence[int]) -> tuple[int, ...]:
    if length is not None and len(lengths):
        raise ConfigError("sequence_length and sequence_lengths exclude each other: give one of them")
    found = tuple(lengths) or ((model.sequence_length if length is None else length),)
    if found[0] is None:
        raise ConfigError("sequence_length is missing, and the configuration sets none")
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in found):
        raise ConfigError(f"sequence_length={short(found[0])} must be a positive integer")
    return found  # type: ignore[return-value]  # the None was told


def _peaks(device_name: str | None, number_format: str, peak_flops: float | None) -> dict[str, float]:
    """The dense peak of one device in FLOP/s, by number format; empty where nothing names a device or a peak."""
    if number_format not in NUMBER_FORMATS:
        raise ConfigError(f"number_format={number_format!r} is not known; choose one of {', '.join(NUMBER_FORMATS)}")
    if peak_flops is not None:
        return {number_format: float(peak_flops)}
    if device_name is None:
        return {}
    peak = find_peak(device_name)
    if peak is None:
        raise ConfigError(
            f"device_name={device_name!r} is unknown or ambiguous: take one from `bridge devices`, or give peak_flops"
        )
    if number_format not in peak.tflops:
        raise ConfigError(f"device_name={device_name!r} has no {number_format} peak, only {', '.join(peak.tflops)}")
    return {name: rate * 1e12 for name, rate in peak.tflops.items()}


def _speed(
    tokens: Any, share: int, step_time: Any, batch: int | None, devices: int, lengths: Sequence[int]
) -> tuple[Fraction | None, float]:
    """Tokens per second of one device, and how far off they may be as they were printed."""
    if tokens is not None and step_time is not None:
        raise ConfigError("tokens_per_second and step_time exclude each other: give one of them")
    if tokens is not None:
        value, rounding = _measured("tokens_per_second", tokens)
        return value / share, rounding
    if step_time is None:
        return None, 0.0
    if batch is None:
        raise ConfigError("step_time needs global_batch_size, the rows per step")
    seconds, rounding = _measured("step_time", step_time)
    return _measured("global_batch_size", batch)[0] * Fraction(sum(lengths), len(lengths)) / seconds / devices, rounding


def _measured(name: str, value: Any) -> tuple[Fraction, float]:
    """A number above zero, and its rounding as a fraction of it, which is known only for strings."""
    if isinstance(value, (str, Quantity)):
        value = _quantity(name, value, ("", "s") if name == "step_time" else ("",))
    found = Fraction(value.number if isinstance(value, Quantity) else exact(name, value))
    if found <= 0:
        raise ConfigError(f"{name}={short(value)} must be above zero")
    return found, float(value.rounding / found) if isinstance(value, Quantity) else 0.0


def _quantity(name: str, value: str | Quantity | None, units: Sequence[str]) -> Quantity | None:
    if value is None:
        return None
    found = value if isinstance(value, Quantity) else Quantity.parse(value)
    if found.unit not in units or found.number <= 0:
        wanted = " or ".join(
            {"FLOP/s": "800TFLOP/s", "%": "41%", "": "a number above zero", "s": "12.5s"}[unit] for unit in units
        )
        told = short(value) if isinstance(value, str) else f"{float(found.value.low):g}{found.unit}"
        raise ConfigError(f"{name}={told} must be given as {wanted}")
    return found


def _named(ranks: dict[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in ranks.items())


def _ranks(config: Any) -> dict[str, int]:
    parallel = get(config, "parallel")
    sizes = {name: get(parallel, f"{name}_parallel_size") for name in ("tensor_model", "pipeline_model", "context")}
    return {name.partition("_")[0]: int(size) for name, size in sizes.items() if size}
