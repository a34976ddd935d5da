"""Runs megatron-core on a machine without CUDA: calls that ask for the GPU use the CPU instead.

megatron-core names ``cuda`` in many places where any device would do.  :func:`install` redirects those calls to their CPU
counterparts; a comment at each redirect says who calls.  If CUDA is present, :func:`install` does nothing.

The tensors on the CPU are ordinary ones, the collectives run on gloo, and no result is approximated: only the name of
the device changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TYPE_NAMES = {f"torch.{name}Tensor": f"torch.cuda.{name}Tensor" for name in ("Float", "BFloat16", "Half")}
_installed: list[TorchFunctionMode] = []


class _CpuInsteadOfCuda(TorchFunctionMode):
    """Rewrites device arguments of torch functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        # Everywhere: torch.empty(..., device="cuda"), torch.tensor(..., device=torch.cuda.current_device()).
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        # The slice of the rotary embedding under context parallelism pins its index; pinning needs a GPU.
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        # The same slice, and the MoE layers: tensor.cuda().
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        # The optimizers sort parameters by tensor.type() and know CUDA's names only.
        if func is torch.Tensor.type and len(args) == 1:
            return _TYPE_NAMES.get(result, result)
        return result


class _NoStream:
    """Replaces streams and events, since the CPU runs in program order.

    It must be a class: ``torch.cuda.Stream | None`` appears in annotations that are evaluated on import.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: _NoStream()


def install() -> None:
    """Redirect CUDA to the CPU in this process; does nothing if CUDA is present, or the second time.

    Arguments are rewritten in the calling thread only; megatron-core works in one thread.
    """
    if torch.cuda.is_available() or _installed:
        return
    _redirect_torch()
    _redirect_megatron()
    mode = _CpuInsteadOfCuda()
    mode.__enter__()
    _installed.append(mode)


def _redirect_torch() -> None:
    cuda: Any = torch.cuda
    # tensor_parallel and the optimizers create tensors on the current device.
    cuda.current_device = lambda: "cpu"
    # The pipeline's point-to-point calls and the checkpoint writer wait for the device.
    cuda.synchronize = lambda *args, **kwargs: None
    # The random state of the model-parallel regions lives on the device.
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # The all-to-all dispatcher of the experts copies split sizes on its own stream.
    cuda.Stream = _NoStream
    cuda.current_stream = lambda *args, **kwargs: _NoStream()


def _redirect_megatron() -> None:
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import token_dispatcher

    megatron_random: Any = random
    # The random number tracker reads and writes CUDA generators by its own functions.
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # Split sizes are turned into numpy arrays only when they come from a GPU; gloo needs them as well.
    token_dispatcher.maybe_move_tensor_to_cpu = _as_numpy


def _as_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
