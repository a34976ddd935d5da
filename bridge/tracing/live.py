"""A live module without its memory: a copy with fake parameters, which leaves the module itself unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bridge.flops.shapes import ConfigError
from bridge.tracing.huggingface import keep_layers, prepare
from bridge.tracing.packed import is_packed, unpacked


def copied(model: torch.nn.Module, mode: FakeTensorMode) -> torch.nn.Module:
    """A copy without data, prepared to run (see ``prepared``).

    Raises:
        ConfigError: The module holds something that cannot be copied.
    """
    # Integer buffers, which hold positions or maps of tokens, keep their data.
    kept = {id(buffer) for buffer in model.buffers() if not (buffer.is_floating_point() or buffer.is_meta)}
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in kept]
    # The memo of ``deepcopy``: object -> its copy.
    fakes: dict[int, Any] = {id(tensor): _fake(tensor, mode) for tensor in tensors}
    for module in filter(is_packed, model.modules()):
        layer = fakes[id(module)] = unpacked(module)
        for name, parameter in layer.named_parameters():
            setattr(layer, name, _fake(parameter, mode))
    try:
        result = copy.deepcopy(model, fakes)
    except Exception as error:
        raise ConfigError(f"{type(model).__name__} cannot be traced because it cannot be copied: {error}") from error
    return prepared(result)


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Around the run of a copy: the gradients of the model itself stay as they are.

    Raises:
        ConfigError: The copy ran the model itself, because a ``forward`` was replaced by a function that refers to the module.
    """
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        led_back = [parameter for parameter, gradient in before if parameter.grad is not gradient]
        for parameter, gradient in before:
            parameter.grad = gradient
    if led_back:
        name = type(model).__name__
        raise ConfigError(
            f"{name} cannot be traced: its forward pass was replaced by a function that refers from a copy back to the original"
        )


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor of the same shape on the CPU, where the inputs of the run are."""
    with mode:
        fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


def prepared(model: torch.nn.Module) -> torch.nn.Module:
    """A model that may be changed, ready to run: in training mode, with experts as batched matmuls and without layer dropout."""
    model.train()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "to_dict") and hasattr(config, "model_type"):  # of transformers
            prepare(config)
            if getattr(config, "pad_token_id", 0) is None:  # heads that look for a text's end need one
                config.pad_token_id = 0
        keep_layers(module)
    return model
