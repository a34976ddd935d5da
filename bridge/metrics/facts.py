"""Declares every published constant of a run: its meaning and where its value comes from.

A finished run can be scored again from them: they include the device, its peak with the source, and the inputs of the formula.
The table in the documentation is generated from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from bridge.flops.plan import Plan
from bridge.flops.reading import get, model_of
from bridge.metrics.host import Host
from bridge.metrics.interval import never_read
from bridge.metrics.peak import UNKNOWN, DevicePeak, Peak
from bridge.metrics.place import Place
from bridge.metrics.totals import whole

#: The fact of a run with incomplete totals.
INCOMPLETE = "totals are lower bounds: the lengths of some micro-batches could not be read"

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known about a run when it starts.

    Attributes:
        host: the loop.
        plan: the plan of its model; None if it cannot be priced.
        convention: the plan's convention.
        place: the place of this process in the job.
        device_peak: the peak of one device and its source; None if it could not be found.
        peak: the peak by number format.
        verified: the comparison of the built model with the plan.
        prices: the prices by convention, see :mod:`bridge.metrics.prices`.
    """

    host: Host
    plan: Plan | None
    convention: str
    place: Place
    device_peak: DevicePeak | None = None
    peak: Peak = UNKNOWN
    verified: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fact:
    """A constant.

    Attributes:
        name: its key in the summary.
        meaning: one sentence.
        of: returns its value, or ``_ABSENT`` where there is none; None for a fact that is added later.
    """

    name: str
    meaning: str
    of: Callable[[Known], Any] | None


def _of_plan(value: Callable[[Plan], Any]) -> Callable[[Known], Any]:
    return lambda known: _ABSENT if known.plan is None else value(known.plan)


def _of_peak(name: str, otherwise: Any = None) -> Callable[[Known], Any]:
    return lambda known: getattr(known.device_peak, name) if known.device_peak else otherwise


def _said(name: str) -> Callable[[Known], Any]:
    return lambda known: known.verified.get(name, _ABSENT)


def _recipe(known: Known) -> str | None:
    return known.plan.formats.recipe.name if known.plan and known.plan.formats.recipe else None


def _trainable(plan: Plan) -> float:
    parameters = plan.parameters()
    return 100 * parameters["trainable"] / parameters["total"]


def _not_counted(known: Known) -> list[str]:
    return ["the whole model"] if known.plan is None else [*known.plan.not_counted, *never_read(known.plan)]


#: What the statistics of a sequence of tokens do not cover.
_BESIDE_TOKENS = ("encoder", "cross", "joint", "byte_patches", "cross_products")


def _full_length(known: Known) -> int | None:
    """Tokens of a full sequence; None if its work depends on more than its tokens."""
    beside = known.plan is None or any(statistic.over in _BESIDE_TOKENS for statistic in known.plan.statistics)
    return None if beside else get(model_of(known.host.config), "seq_length")


def _at_full_length(value: Callable[[Known, Plan, int], Any]) -> Callable[[Known], Any]:
    def of(known: Known) -> Any:
        length = _full_length(known)
        return value(known, known.plan, length) if known.plan is not None and length else _ABSENT

    return of


def planned_flops(known: Known, plan: Plan, seq_length: int) -> int | None:
    """FLOPs of the whole run if every sample is full (padding and packing stay below that); None if unknown."""
    train = known.host.train
    steps, samples = getattr(train, "train_iters", None), getattr(train, "global_batch_size", None)
    grows = getattr(train, "rampup_batch_size", None)
    if not steps or not samples or grows or any(statistic.over != "sequences" for statistic in plan.statistics):
        return None
    return steps * samples * whole(plan.flops([seq_length]))


def options_of(model: Any) -> dict[str, Any]:
    """The fields of a model configuration with plain values."""
    if is_dataclass(model) and not isinstance(model, type):
        fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    elif isinstance(model, Mapping):
        fields = dict(model)
    else:
        fields = dict(getattr(model, "__dict__", {}))
    plain = (bool, int, float, str, list, tuple, dict)
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in fields.items()
        if isinstance(value, plain) or is_dataclass(value)
    }


FACTS = (
    Fact("convention", "how FLOPs are counted", lambda known: known.convention),
    Fact("source", "how the model was found: `read` or `traced`", lambda known: getattr(known.host.config, "source", "read")),
    Fact("device", "name of the device", _of_peak("device")),
    Fact("number_format", "number format of most matmuls", _of_peak("number_format")),
    Fact("number_format_recipe", "which matmuls run in which format, where there are several", _recipe),
    Fact("peak_flops", "dense peak of one device in FLOP/s; empty where it is unknown", _of_peak("flops")),
    Fact("peak_source", "where the peak comes from", _of_peak("source", "unknown")),
    Fact("peaks", "the peak by number format, where there are several", lambda known: dict(known.peak.by_format) or _ABSENT),
    Fact("world_size", "ranks that train together", lambda known: known.place.world),
    Fact("tensor_model_parallel_size", "ranks that share each layer", lambda known: known.place.tensor),
    Fact("pipeline_model_parallel_size", "pipeline stages", lambda known: known.place.pipeline),
    Fact("virtual_pipeline_model_parallel_size", "chunks of the model on each stage", lambda known: known.place.virtual),
    Fact("context_parallel_size", "ranks that share each sequence", lambda known: known.place.context),
    Fact("expert_model_parallel_size", "ranks that share the experts", lambda known: known.place.expert),
    Fact("data_parallel_size", "replicas, which see different batches", lambda known: known.place.replicas),
    Fact("formula_inputs", "the model's options", lambda known: options_of(model_of(known.host.config))),
    Fact("not_counted", "what the counts leave out, one sentence each", _not_counted),
    Fact("parameters", "parameters of the plan: total, active and trainable", _of_plan(lambda plan: plan.parameters())),
    Fact("trainable_percent", "percentage of the parameters that train", _of_plan(_trainable)),
    Fact("statistics", "the batch statistics that the plan prices", _of_plan(lambda plan: [one.name for one in plan.statistics])),
    Fact("prices", "FLOPs per unit of each statistic, by convention and component", lambda known: dict(known.prices) or _ABSENT),
    Fact(
        "flops_per_token",
        "FLOPs per token in a sequence of full length",
        _at_full_length(lambda known, plan, length: float(plan.flops([length])) / length),
    ),
    Fact("flops_per_token_seq_length", "the full length, in tokens", _at_full_length(lambda known, plan, length: length)),
    Fact("planned_flops", "FLOPs of the whole run if every sample is full; empty where unknown", _at_full_length(planned_flops)),
    Fact(
        "verified",
        "`parameters`: the built model has the plan's parameters; `trace`: its FLOPs agree too; `no`: they differ, or could "
        "not be compared",
        _said("verified"),
    ),
    Fact(
        "verified_details",
        "one sentence for each module that differs, with both numbers, or the reason why nothing or only the total was compared",
        _said("verified_details"),
    ),
    Fact("incomplete", "present from the first unread micro-batch on: totals are lower bounds", None),
)


def constants(known: Known) -> dict[str, Any]:
    """The facts of a run, by name."""
    found = {fact.name: fact.of(known) for fact in FACTS if fact.of is not None}
    return {name: value for name, value in found.items() if value is not _ABSENT}
