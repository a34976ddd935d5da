"""What trains of a built model, by the names that a plan has for its modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

import torch
from torch.nn import Module, Parameter

from bridge.flops.transforms import Trainable

#: What wraps a model for data parallelism and 16-bit weights, a language model beside a tower, and a layer with an adapter.
_WRAPPERS = re.compile(r"^(module\.)*(language_model\.)?|\.to_wrap(?=\.)")
_EXPERT = re.compile(r"\.local_experts\.\d+")


def places(model: Module) -> Callable[[str], str]:
    """Local name -> name in the whole model: without wrappers, layers and experts counted over all ranks."""
    numbers: dict[str, str] = {}
    for name, module in model.named_modules():
        stem = name.rpartition(".")[0]
        layer, experts = getattr(module, "layer_number", None), getattr(module, "num_local_experts", 0)
        if isinstance(layer, int) and stem.endswith("decoder.layers"):
            numbers[name] = f"{stem}.{layer - 1}"
        if experts and hasattr(module, "local_experts"):
            first = module.ep_group.rank() * experts
            numbers |= {f"{name}.local_experts.{i}": f"{name}.local_experts.{first + i}" for i in range(experts)}

    def place(name: str) -> str:
        # From the innermost module outwards: each replacement leaves what stands before it as it is.
        for end in reversed([match.start() for match in re.finditer(r"\.|$", name)]):
            if name[:end] in numbers:
                name = numbers[name[:end]] + name[end:]
        return _WRAPPERS.sub("", name)

    return place


def plan_path(name: str) -> str:
    """The path in a plan of a module of the whole model: the experts of a layer are one module there."""
    return re.sub(r"\.(\w+)\.adapter\.(linear_(?:q|k|v|fc1_gate|fc1_up))\.", r".\2.adapter.", _EXPERT.sub("", name))


def parameters(model: Module) -> Iterator[tuple[str, bool, Parameter]]:
    """(path in a plan, whether it is a bias, parameter) for every parameter of a model or a pipeline stage."""
    place = places(model)
    for name, parameter in model.named_parameters():
        path = plan_path(place(name))
        stem, _, leaf = path.rpartition(".")
        yield (stem if leaf in ("weight", "bias") else path), leaf == "bias", parameter


def what_trains(model: Module | Iterable[Module]) -> dict[tuple[str, bool], bool]:
    """(path in a plan, whether it is a bias) -> whether it trains; experts train where any of them does."""
    found: dict[tuple[str, bool], bool] = {}
    for chunk in [model] if isinstance(model, Module) else model:
        for path, bias, parameter in parameters(chunk):
            found[path, bias] = found.get((path, bias), False) or parameter.requires_grad
    return found


def trainable_from(model: Module | Iterable[Module], otherwise: Optional[Trainable] = None) -> Trainable:
    """What trains of a built model, for ``compile_plan``: from ``requires_grad`` of its parameters.

    Args:
        model: megatron-core's model, wrapped or not, or the chunks of a pipeline stage.
        otherwise: the word on modules that the model has not by a plan's name; unset: they train.
    """
    return _known(what_trains(model), otherwise)


def trainable_over_stages(model: Any, group: Any, otherwise: Trainable) -> Trainable:
    """:func:`trainable_from` of a whole pipeline: every stage says what it has. A collective over ``group``, if there is one.

    Where a stage's model cannot be read, ``otherwise`` has the word on everything.
    """
    try:
        found: Optional[dict[tuple[str, bool], bool]] = what_trains(model)
    except Exception:  # any framework's model, of any shape
        found = None
    stages = [found]
    if group is not None and group.size() > 1:
        stages = [None] * group.size()
        torch.distributed.all_gather_object(stages, found, group=group)
    whole: dict[tuple[str, bool], bool] = {}
    for stage in stages:
        if stage is None:
            return otherwise
        for key, trains in stage.items():
            whole[key] = whole.get(key, False) or trains
    return _known(whole, otherwise)


def _known(found: dict[tuple[str, bool], bool], otherwise: Optional[Trainable]) -> Trainable:
    def weights(path: str) -> bool:
        return found.get((path, False), otherwise is None or otherwise.weights(path))

    def biases(path: str) -> bool:
        return found.get((path, True), otherwise is None or otherwise.biases(path))

    return Trainable(weights, biases)
