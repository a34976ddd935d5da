"""Describes the weights, optimizer and schedule of a rank as parts of the whole, and restores them, for any layout.

megatron-core's distributed checkpointing splits whole tensors into parts, so a run may continue with other tensor, pipeline,
data or expert parallel sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.utils import unwrap_model

from bridge.training.errors import RunError
from bridge.training.job.agree import gather
from bridge.training.peft import is_adapter, reset_magnitudes

# The form of the distributed optimizer's state that can be resharded for other layouts.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}


def sharded_state(
    model: list[Any], optimizer: Any, scheduler: Any, *, is_loading: bool = False, adapted: bool = False, frozen: bool = True
) -> ShardedStateDict:
    """Weights, optimizer and learning-rate schedule of this rank, described as parts of the whole.

    ``adapted``: layers may have different adapters, so they are stored one by one; ``frozen``: include frozen weights.
    """
    metadata = {**_METADATA, "non_homogeneous_layers": True} if adapted else _METADATA
    state: ShardedStateDict = {}
    for name, chunk in _chunks(model):
        tensors = chunk.sharded_state_dict(metadata=metadata)
        state[name] = {key: tensor for key, tensor in tensors.items() if frozen or not _is_frozen(tensor)}
    _begin(optimizer)
    parts = _parts(optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=metadata))
    state["optimizer_step"] = next((step for step in map(_take_step, parts) if step is not None), None)
    state["optimizer"] = dict(enumerate(_keep_local(parts)))
    state["scheduler"] = scheduler.state_dict()
    return state


def restore(loaded: Mapping[str, Any], model: list[Any], optimizer: Any, scheduler: Any) -> None:
    """Restore this rank's model, optimizer and schedule from the result of :func:`bridge.training.checkpoint.store.load`."""
    for name, chunk in _chunks(model):
        _fill(chunk, loaded[name], lambda key, tensor: _is_frozen(tensor))
    parts = [loaded["optimizer"][number] for number in sorted(loaded["optimizer"])]
    step = loaded["optimizer_step"]
    for part in parts:
        _give_step(part, step)
    with _step_for_torch_adam(optimizer, step):
        optimizer.load_state_dict(parts[0] if len(parts) == 1 else dict(enumerate(parts)))
    scheduler.load_state_dict(loaded["scheduler"])


def base_weights(model: list[Any]) -> ShardedStateDict:
    """The weights that this rank loads from a base: all but those of adapters."""
    return {
        name: {key: tensor for key, tensor in chunk.sharded_state_dict(metadata=_METADATA).items() if not is_adapter(key)}
        for name, chunk in _chunks(model)
    }


def restore_base(loaded: Mapping[str, Any], model: list[Any], optimizer: Any) -> None:
    """Restore this rank's model from what was loaded for :func:`base_weights`."""
    for name, chunk in _chunks(model):
        _fill(chunk, loaded[name], lambda key, tensor: is_adapter(key))
        reset_magnitudes(chunk)
    optimizer.reload_model_params()  # it may keep copies in float32


def has_frozen(model: list[Any]) -> bool:
    """Whether any part of the model is frozen, on any rank."""
    return any(gather(any(not parameter.requires_grad for chunk in model for parameter in chunk.parameters())))


def _is_frozen(tensor: Any) -> bool:
    """Whether a parameter, or a part of a sharded state, is frozen."""
    parameter = tensor.data if isinstance(tensor, (ShardedTensor, ShardedTensorFactory)) else tensor
    return isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad


def _fill(chunk: Any, state: Mapping[str, Any], may_miss: Callable[[str, Any], bool]) -> None:
    """As ``load_state_dict``, but raise RunError if a parameter is missing that may not be, or is unexpected."""
    missing, unexpected = chunk.load_state_dict(state, strict=False)
    present = dict(chunk.named_parameters())
    wrong = [key for key in missing if not may_miss(key, present.get(key))] + list(unexpected)
    if wrong:
        raise RunError(f"the checkpoint has no place, or no value, for {', '.join(wrong[:3])}")


# megatron-core chains several optimizers if experts are spread over ranks, and stores their hyperparameters and step counts
# by position in the chain.  The moments have names and can be resharded; the rest is made independent of the chain here:
# hyperparameters come from the configuration, and there is one step count.


def _singles(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _counts_per_parameter(single: Any) -> bool:
    return isinstance(single.optimizer, torch.optim.Adam)  # AdamW is one; those of Apex and TE count per group


def _begin(optimizer: Any) -> None:
    """Create the empty moments of an optimizer before its first step; megatron-core reads the step count beside them."""
    for single in _singles(optimizer):
        single.init_state_fn(single.optimizer, single.config)
        if _counts_per_parameter(single):
            for moments in single.optimizer.state.values():
                moments.setdefault("step", torch.tensor(0.0))


@contextlib.contextmanager
def _step_for_torch_adam(optimizer: Any, step: float | None) -> Iterator[None]:
    """Let megatron-core's distributed optimizer load on top of torch's Adam.

    It omits the step count when it splits the saved moments, but needs it when it copies them; and it gives all parameters the
    same counter object, which would then count once for each parameter.
    """
    affected = [s for s in _singles(optimizer) if isinstance(s, DistributedOptimizer) and _counts_per_parameter(s)]
    for single in affected:
        copy = single._set_main_param_and_optimizer_states
        single._set_main_param_and_optimizer_states = lambda parameter, tensors, copy=copy: copy(
            parameter, {**tensors, "step": torch.tensor(step)}
        )
    try:
        yield
    finally:
        for single in affected:
            del single._set_main_param_and_optimizer_states
            for moments in single.optimizer.state.values():
                moments["step"] = moments["step"].clone()


def _parts(state: dict[Any, Any]) -> list[dict[str, Any]]:
    chained = all(isinstance(key, int) for key in state)
    return [state[number] for number in sorted(state)] if chained else [state]


def _torch_state(part: dict[str, Any]) -> dict[str, Any]:
    """The state dict of torch's optimizer inside megatron-core's wrappers."""
    return part.get("optimizer", part)


def _take_step(part: dict[str, Any]) -> float | None:
    inner = _torch_state(part)
    steps = [inner.get("state", {}).pop("common_step", None), *(group.pop("step", None) for group in inner["param_groups"])]
    return next((float(step) for step in steps if step is not None), None)


def _give_step(part: dict[str, Any], step: float | None) -> None:
    if step is None:
        return
    inner = _torch_state(part)
    if "param_state" in part:  # the distributed optimizer keeps the count in its groups, the others beside the moments
        for group in inner["param_groups"]:
            group["step"] = step
    else:
        inner["state"]["common_step"] = torch.tensor(step)


def _keep_local(value: Any) -> Any:
    """The same structure; everything that is not split over ranks is kept local and not saved."""
    if isinstance(value, dict):
        return {key: _keep_local(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_keep_local(item) for item in value]
    return value if isinstance(value, (ShardedBase, LocalNonpersistentObject)) else LocalNonpersistentObject(value)


def _chunks(model: list[Any]) -> Iterator[tuple[str, Any]]:
    chunks = unwrap_model(model)
    for number, chunk in enumerate(chunks):
        yield "model" if len(chunks) == 1 else f"model{number}", chunk
