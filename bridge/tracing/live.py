"""A live module without its memory: its parameters stay where they are, fake ones take their places while it is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bridge.tracing.huggingface import prepare


def is_on_meta(model: torch.nn.Module) -> bool:
    """Whether all its parameters are on the meta device."""
    return all(parameter.is_meta for parameter in model.parameters())


def fakes(model: torch.nn.Module, mode: FakeTensorMode) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, without its data; tied ones are one."""
    known: dict[int, torch.Tensor] = {}
    found = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in known:
            known[id(tensor)] = mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
        found[name] = known[id(tensor)]
    return found


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """In training mode, with experts as batched matmuls and no layer left out by chance; everything is put back."""
    training = {module: module.training for module in model.modules()}
    configs = {
        id(module.config): module.config for module in model.modules() if hasattr(getattr(module, "config", None), "to_dict")
    }
    inner = [value for config in configs.values() for value in vars(config).values() if hasattr(value, "model_type")]
    kept = [(one, dict(vars(one))) for one in (*configs.values(), *inner)]
    dropped = [(module, name, value) for module in model.modules() for name, value in _layerdrops(module)]
    generator = torch.random.get_rng_state()
    try:
        model.train()
        for config in configs.values():
            prepare(config)
            if getattr(config, "pad_token_id", 0) is None:  # heads that look for a text's end need one
                config.pad_token_id = 0
        for module, name, _ in dropped:
            setattr(module, name, 0.0)
        yield
    finally:
        torch.random.set_rng_state(generator)
        for module, name, value in dropped:
            setattr(module, name, value)
        for one, values in kept:
            vars(one).clear()
            vars(one).update(values)
        for module, flag in training.items():
            module.training = flag


def _layerdrops(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name.endswith("layerdrop") and isinstance(value, float)]
