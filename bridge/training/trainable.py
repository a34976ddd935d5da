"""The parameters of a built model and which of them train, under the plan's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch.nn import Module, Parameter, UninitializedParameter

from bridge.flops.transforms import Trainable
from bridge.metrics.place import parallel_state

#: Wrappers in names: for data parallelism and 16-bit weights, of a language model beside a tower, of a layer with an adapter.
_WRAPPERS = re.compile(r"^(module\.)*(language_model\.)?|\.to_wrap(?=\.)")
_EXPERT = re.compile(r"\.local_experts\.\d+")
#: Norms that Transformer Engine keeps in the following linear layer -> their place in the plan.
_FUSED_NORMS = (
    (re.compile(r"\.self_attention\.(linear_qkv|linear_q)\.layer_norm_"), ".input_layernorm."),
    (re.compile(r"\.self_attention\.linear_(q|kv)_up_proj\.layer_norm_"), r".self_attention.\1_layernorm."),
    (re.compile(r"\.mixer\.in_proj\.layer_norm_"), ".input_layernorm."),
    (re.compile(r"\.mlp\.linear_fc1\.layer_norm_"), ".pre_mlp_layernorm."),
)


def global_names(model: Module) -> Callable[[str], str]:
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
        # From the innermost module outwards, so that each replacement leaves the part before it unchanged.
        for end in reversed([match.start() for match in re.finditer(r"\.|$", name)]):
            if name[:end] in numbers:
                name = numbers[name[:end]] + name[end:]
        return _WRAPPERS.sub("", name)

    return place


def plan_path(name: str) -> str:
    """The path in a plan of a module of the whole model; in a plan the experts of a layer are one module."""
    return re.sub(r"\.(\w+)\.adapter\.(linear_(?:q|k|v|fc1_gate|fc1_up))\.", r".\2.adapter.", _EXPERT.sub("", name))


def parameters(model: Module) -> Iterator[tuple[str, bool, Parameter]]:
    """(path in a plan, whether it is a bias, parameter) for every parameter of a model or a pipeline stage."""
    place = global_names(model)
    for name, parameter in model.named_parameters():
        yield *_split(plan_path(place(name))), parameter


def _split(path: str) -> tuple[str, bool]:
    """The module of a parameter, and whether it is the module's bias."""
    for fused, apart in _FUSED_NORMS:
        path = fused.sub(apart, path)
    stem, _, leaf = path.rpartition(".")
    # A grouped layer of experts has weight0, weight1, ...
    kind = leaf.rstrip("0123456789") if re.search(r"\.linear_\w+$", stem) else leaf
    return (stem, kind == "bias") if kind in ("weight", "bias") else (path, False)


@dataclass(frozen=True)
class Weights:
    """The weights, or the biases, of one module of the whole model.

    Attributes:
        trains: whether any of them trains.
        entries: their number over all ranks.
        sizes: the sizes of the tensor; empty if there are several tensors.
    """

    trains: bool = False
    entries: int = 0
    sizes: tuple[int, ...] = ()

    def beside(self, other: Weights) -> Weights:
        """Together with those of an equal module, such as another expert."""
        return Weights(self.trains or other.trains, self.entries + other.entries)


@dataclass(frozen=True)
class Built:
    """The weights of a built model.

    Attributes:
        modules: (path in a plan, whether it is a bias) -> weights.
        uncounted: why the numbers of entries are unknown; empty if they are known.
    """

    modules: Mapping[tuple[str, bool], Weights]
    uncounted: str = ""


def what_is_built(model: Module | Iterable[Module]) -> Built:
    """The weights of a model or of the chunks of a pipeline stage, with the parts of all tensor and expert ranks added up."""
    found: dict[tuple[str, bool], Weights] = {}
    reasons = ""
    for chunk in [model] if isinstance(model, Module) else model:
        reasons = reasons or _sharded(chunk)
        experts = _expert_ranks(chunk)
        for path, bias, parameter in parameters(chunk):
            reasons = reasons or _uncounted(parameter)
            own = Weights(parameter.requires_grad) if reasons else _whole(path, parameter, experts)
            found[path, bias] = found[path, bias].beside(own) if (path, bias) in found else own
    return Built(found, reasons)


def _whole(path: str, parameter: Parameter, experts: Mapping[str, int]) -> Weights:
    """A parameter before it is split over ranks; without entries if it is a copy of another stage's."""
    trains = parameter.requires_grad
    if getattr(parameter, "shared", False):
        return Weights(trains)
    home = path.partition(".experts.")[0]
    sizes = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        sizes[parameter.partition_dim] *= _tensor_ranks(expert=home != path)
    return Weights(trains, prod(sizes) * experts.get(home, 1), tuple(sizes))


def _expert_ranks(model: Module) -> dict[str, int]:
    """Path of a layer of experts -> the number of ranks over which they are spread."""
    place = global_names(model)
    groups = {name: getattr(module, "ep_group", None) for name, module in model.named_modules() if name.endswith(".experts")}
    return {place(name).removesuffix(".experts"): group.size() for name, group in groups.items() if group is not None}


def _tensor_ranks(*, expert: bool) -> int:
    state = parallel_state()
    if state is None:
        return 1
    return state.get_expert_tensor_parallel_world_size() if expert else state.get_tensor_model_parallel_world_size()


def _sharded(model: Module) -> str:
    """Why the parameters of a model do not show all its weights; empty if they do."""
    for module in model.modules():
        if type(module).__name__.startswith(("FullyShardedDataParallel", "MegatronFSDP", "FSDP")):
            return "its parameters are sharded (FSDP)"
        if getattr(module, "is_quantized", False) or getattr(module, "quantization_method", None) is not None:
            return "its weights are quantized"
    return ""


def _uncounted(parameter: Parameter) -> str:
    """Why a parameter does not have the size of its weight; empty if it does."""
    if hasattr(parameter, "placements") or hasattr(parameter, "_is_flat_param"):
        return "its parameters are sharded (DTensor, FSDP)"
    if hasattr(parameter, "ds_id"):
        return "its parameters are partitioned (DeepSpeed)"
    if isinstance(parameter, UninitializedParameter):
        return "some of its parameters have no size yet"
    plain = parameter.dtype.is_floating_point or parameter.dtype.is_complex
    return "" if plain and not hasattr(parameter, "quant_state") else "its weights are quantized"


def trainable_from(model: Module | Iterable[Module], otherwise: Trainable | None = None) -> Trainable:
    """What trains in a built model, from ``requires_grad`` of its parameters, for ``compile_plan``.

    Args:
        model: megatron-core's model, wrapped or not, the chunks of a pipeline stage, or their ``Built``.
        otherwise: decides for modules that the model does not have under the plan's names; None: they train.
    """
    found = (model if isinstance(model, Built) else what_is_built(model)).modules

    def weights(path: str) -> bool:
        return found[path, False].trains if (path, False) in found else otherwise is None or otherwise.weights(path)

    def biases(path: str) -> bool:
        return found[path, True].trains if (path, True) in found else otherwise is None or otherwise.biases(path)

    return Trainable(weights, biases)


def built_over_stages(model: Any) -> Built:
    """The weights of the whole model, gathered from all pipeline stages in one collective if there are several."""
    try:
        own: Built | None = what_is_built(model)
    except Exception:  # any framework's model, of any shape
        own = None
    state = parallel_state()
    group = state.get_pipeline_model_parallel_group() if state is not None else None
    stages = [own]
    if group is not None and group.size() > 1:
        stages = [None] * group.size()
        torch.distributed.all_gather_object(stages, own, group=group)
    known = [stage for stage in stages if stage is not None]
    if len(known) < len(stages):
        return Built({}, "its modules cannot be read")
    whole: dict[tuple[str, bool], Weights] = {}
    for key, part in (item for stage in known for item in stage.modules.items()):
        # A module is on one stage; another stage may hold a copy of its weights.
        largest = max(whole.get(key, part), part, key=lambda weights: weights.entries)
        whole[key] = replace(largest, trains=largest.trains or part.trains or whole.get(key, part).trains)
    return Built(whole, next((stage.uncounted for stage in known if stage.uncounted), ""))
