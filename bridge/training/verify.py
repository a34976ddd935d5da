"""Compares a built model with its plan: the parameters must be equal, module by module."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from bridge.config.sources import huggingface_names
from bridge.flops.plan import Plan, compile_plan
from bridge.flops.shapes import ConfigError
from bridge.flops.terms import Kind
from bridge.training.trainable import Built, Weights, built_over_stages

#: Translations of a built model's module names to the plan's; megatron-core's names are the plan's own.
_NAMINGS: tuple[Callable[[str], str], ...] = (lambda path: path, huggingface_names.plan_path)
#: Names of the parts of a linear layer that one of plan and model may have in parts and the other as a whole.
_PARTS = re.compile(r"(?<=\.self_attention\.linear_)[qkv](?=$|\.bias$)|(?<=\.linear_fc1)_(?:gate|up)$")
_TOLD = 8


@dataclass(frozen=True)
class Verified:
    """The result of comparing a built model with its plan.

    Attributes:
        equal: whether the parameters are equal.
        differences: one sentence for each module that differs, with both numbers, largest first.
        reason: why nothing, or only a total, could be compared; empty if every module was.
        by: what was compared: ``parameters``, or with ``by_trace`` also the ``trace``.
    """

    equal: bool = False
    differences: tuple[str, ...] = ()
    reason: str = ""
    by: str = "parameters"

    @property
    def facts(self) -> dict[str, Any]:
        """For the summary of a run."""
        details = [*self.differences, *([self.reason] if self.reason else [])]
        return {"verified": self.by if self.equal else "no", "verified_details": details}


def verify(plan: Plan, model: Any) -> Verified:
    """Compare; see ``Plan.verify``. Never raises: if a comparison is impossible, ``reason`` says why."""
    return compare(plan, built_over_stages(model))


def compare(plan: Plan, built: Built) -> Verified:
    """Compare a plan with a built model, whose vocabulary may be padded or not."""
    if built.uncounted or not built.modules:
        return Verified(reason=f"not compared: {built.uncounted or 'no model was given'}")
    try:
        padded = _compared(plan, built, padded=True)
        return padded if padded.equal else min(_compared(plan, built, padded=False), padded, key=_disagreement)
    except Exception as error:  # any module, named in any way
        return Verified(reason=f"not compared: {type(error).__name__}: {error}")


#: Sequence lengths at which a plan and a trace are compared: unequal, and one longer than windows of a few hundred tokens.
_LENGTHS = (777, 64)


def traced_plan(model: Any, convention: str) -> Plan:
    """The plan of a built module by running it without memory.

    Raises:
        ConfigError: the model is in several parts or cannot be traced.
    """
    parts = model if isinstance(model, (list, tuple)) else [model]
    if len(parts) != 1:
        raise ConfigError(f"a model in {len(parts)} parts cannot be traced")
    trace = importlib.import_module("bridge.tracing").trace
    return compile_plan(trace(getattr(parts[0], "module", parts[0])), convention)


def by_trace(plan: Plan, traced: Plan, found: Verified) -> Verified:
    """Extend a comparison of parameters by FLOPs: by component if plan and trace have the same components, else in total."""
    if found.differences:
        return found
    sums = [one.breakdown(_LENGTHS) for one in (plan, traced)]
    ours, theirs = ({name: flops for name, flops in one.items() if flops} for one in sums)
    if sum(ours.values()) == sum(theirs.values()):
        return replace(found, equal=True, by="trace")
    if ours.keys() != theirs.keys():
        ours, theirs = {"all": sum(ours.values())}, {"all": sum(theirs.values())}
    at = " + ".join(map(str, _LENGTHS))
    differences = [
        f"{name}: plan {ours[name]:,} FLOPs of {at} tokens, trace {theirs[name]:,}" for name in ours if ours[name] != theirs[name]
    ]
    return Verified(differences=tuple(differences), by="trace")


def _disagreement(found: Verified) -> tuple[bool, int]:
    return not found.equal, len(found.differences)


def _compared(plan: Plan, built: Built, *, padded: bool) -> Verified:
    wanted = _planned(plan, padded=padded)
    has = max((_named(built, naming) for naming in _NAMINGS), key=lambda modules: len(modules.keys() & wanted.keys()))
    total, theirs = (sum(weights.entries for weights in modules.values()) for modules in (wanted, has))
    if total == theirs and not _renamed(wanted, has):
        return Verified(equal=True)
    differences = _unexplained(wanted, has)
    if total == theirs and all(not (path in wanted and path in has) for path in differences):
        return Verified(equal=True, reason="compared in total: the plan has other names for some modules")
    if not wanted.keys() & has.keys():
        return Verified(
            differences=(f"the whole model: plan {total:,}, model {theirs:,}",), reason="no module is known by its name"
        )
    more = all(path not in wanted for path in differences)
    left_out = [sentence for sentence in plan.model.not_counted if sentence in plan.not_counted]
    sentences = tuple(_sentences(wanted, has, differences))
    if more and left_out:
        return Verified(reason=f"the plan leaves out {'; '.join(left_out)}; of it are {'; '.join(sentences)}")
    return Verified(differences=sentences)


def _planned(plan: Plan, *, padded: bool) -> dict[str, Weights]:
    """The weights of the plan by module."""
    found: dict[str, Weights] = {}
    for term in plan.built_terms(padded=padded):
        # A traced plan has separate entries for biases.
        path, entries = _PARTS.sub(_whole_name, (term.path or term.name).removesuffix(".bias")), term.parameters
        if entries:
            sizes = (term.k, term.n) if term.kind is Kind.TABLE else (term.n, term.k)
            own = Weights(entries=entries, sizes=sizes if entries == term.k * term.n and min(sizes) > 1 else ())
            found[path] = found[path].beside(own) if path in found else own
    return found


def _named(built: Built, naming: Callable[[str], str]) -> dict[str, Weights]:
    """The built weights by module, weights and biases together."""
    found: dict[str, Weights] = {}
    for (name, _), own in built.modules.items():
        path = _PARTS.sub(_whole_name, naming(name))
        if own.entries:
            found[path] = found[path].beside(own) if path in found else own
    return found


def _whole_name(part: re.Match[str]) -> str:
    return "qkv" if part[0] in "qkv" else ""


def _entries(modules: Mapping[str, Weights], path: str) -> int:
    return modules[path].entries if path in modules else 0


def _renamed(wanted: Mapping[str, Weights], has: Mapping[str, Weights]) -> bool:
    """Whether plan and model differ in any module."""
    return wanted.keys() != has.keys() or any(wanted[path].entries != has[path].entries for path in wanted)


def _unexplained(wanted: Mapping[str, Weights], has: Mapping[str, Weights]) -> list[str]:
    """Modules that differ, without those inside a module whose sum is right: there only names differ."""
    plan, model = _sums(wanted), _sums(has)
    return [
        path
        for path in dict.fromkeys((*wanted, *has))
        if _entries(wanted, path) != _entries(has, path)
        and ((path in wanted and path in has) or not any(plan.get(above) == model.get(above) for above in _above(path)))
    ]


def _sums(modules: Mapping[str, Weights]) -> dict[str, int]:
    """The number of entries inside every module that contains others."""
    sums: dict[str, int] = defaultdict(int)
    for path, weights in modules.items():
        for above in _above(path):
            sums[above] += weights.entries
    return sums


def _above(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _sentences(wanted: Mapping[str, Weights], has: Mapping[str, Weights], differences: list[str]) -> Iterator[str]:
    """One sentence for each difference, the largest first; equal differences of several layers share one."""
    plan, model = _with_wholes(wanted), _with_wholes(has)
    largest = dict.fromkeys(_missing_whole(path, plan, model) for path in differences)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path in largest:
        stem = re.sub(r"(?<=layers\.)\d+", "*", path, count=1)
        ours, theirs = _texts(plan.get(path), model.get(path))
        groups[stem, ours, theirs].append(path)

    def weight(item: tuple[Any, list[str]]) -> int:
        return -sum(abs(_entries(plan, path) - _entries(model, path)) for path in item[1])

    ordered = sorted(groups.items(), key=weight)
    for (stem, plans, models), paths in ordered[:_TOLD]:
        yield f"{paths[0] if len(paths) == 1 else f'{stem} ({len(paths)} layers)'}: plan {plans}, model {models}"
    if len(ordered) > _TOLD:
        yield f"{len(ordered) - _TOLD} more modules"


def _with_wholes(modules: Mapping[str, Weights]) -> dict[str, Weights]:
    """The modules, and those that contain them."""
    return {**{path: Weights(entries=entries) for path, entries in _sums(modules).items()}, **modules}


def _missing_whole(path: str, plan: Mapping[str, Weights], model: Mapping[str, Weights]) -> str:
    """The largest module around a path that only one of plan and model has; the path itself if both have all of them."""
    return next((above for above in _above(path) if (above in plan) != (above in model)), path)


def _texts(plan: Weights | None, model: Weights | None) -> tuple[str, str]:
    """The weights of plan and model as texts: matrix sizes if both are known, else numbers of entries."""
    sized = all(own is None or (len(own.sizes) > 1 and own.entries == prod(own.sizes)) for own in (plan, model))

    def text(own: Weights | None, absent: str) -> str:
        if own is None:
            return absent
        return " x ".join(f"{size:,}" for size in own.sizes) if sized else f"{own.entries:,}"

    return text(plan, "has none"), text(model, "has none")
