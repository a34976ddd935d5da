"""Counts the assignments of a built model's routers to its experts, on the device and without waiting for it.

Only first passes in training are counted, not the recomputation inside a backward pass.  A rank counts the assignments of its own
routers, wherever the experts are: the sum over all ranks is the work of all experts, with any dispatcher on any layout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from bridge.config.sources import huggingface_names
from bridge.flops.plan import Plan
from bridge.flops.routed import expert_count, expert_layers
from bridge.metrics.place import Place
from bridge.training.trainable import global_names

#: megatron-core's module of routers, and the name in it of the function that drops and pads.
_ROUTERS, _DROPPING = "megatron.core.transformer.moe.router", "apply_router_token_dropping"


def is_first_pass(module: Module) -> bool:
    """Whether this is a module's first pass over its input: in training, and not inside a backward pass."""
    return module.training and torch._C._current_graph_task_id() == -1


class Routing:
    """The counts of one rank since the last call of ``take``.

    Args:
        chunks: the model on this rank.
        layers: path of each layer of experts in the plan -> its number.
        experts: number of experts in each layer.
    """

    def __init__(self, chunks: Iterable[Module], layers: Mapping[str, int], experts: int) -> None:
        self.layers, self.experts = len(layers), experts
        self.requested = 0
        """Requested assignments: top-k per token."""
        self.found: set[int] = set()
        """Layers that this rank counts."""
        self._useful: Tensor | None = None
        """[layers, experts]: requested assignments that were not dropped."""
        self._rows: Tensor | None = None
        """[layers, experts]: rows that the experts process, including padding."""
        self._error: Exception | None = None
        self._handles: list[Any] = []
        self._now: tuple[int, Any] | None = None
        """The layer whose router is running, and its requests before any were dropped."""
        for chunk in chunks:
            for number, module in _routers(chunk, layers):
                self.found.add(number)
                self._watch(number, module)

    def _watch(self, number: int, module: Module) -> None:
        if hasattr(module, "topk") and hasattr(module, "routing"):
            self._handles += [
                module.register_forward_pre_hook(self._guarded(partial(self._enter, number))),
                module.register_forward_hook(self._guarded(partial(self._routed, number))),
            ]
            _watch_dropping(self)
        else:
            hook = self._guarded(partial(self._chosen, number))
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _guarded(self, method: Callable[..., None]) -> Callable[..., None]:
        """Wrap a hook: it counts first passes only and never raises into a forward pass."""

        @wraps(method)
        @torch.no_grad()
        def guarded(module: Module, *args: Any) -> None:
            try:
                if self._error is None and is_first_pass(module):
                    method(module, *args)
            except Exception as error:
                self._error = error

        return guarded

    # ---- megatron-core -------------------------------------------------------------------------------------------

    def _enter(self, number: int, router: Any, args: Any) -> None:
        self._now = number, None

    def asked(self, before: Tensor) -> None:
        """Receive a router's map [tokens, experts] before tokens are dropped."""
        if self._now is not None:
            self._now = self._now[0], before

    def _routed(self, number: int, router: Any, args: Any, output: tuple[Any, Tensor]) -> None:
        """Count a router's output: a boolean map [tokens, experts] after dropping and padding."""
        _, routing_map = output
        before = self._now[1] if self._now is not None else None
        self._now = None
        self.requested += routing_map.shape[0] * router.topk
        rows = routing_map.sum(0)
        useful = rows if before is None else (routing_map & before.bool()).sum(0)
        self._add(number, rows, useful)

    # ---- transformers --------------------------------------------------------------------------------------------

    def _chosen(self, number: int, module: Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Count the chosen experts [tokens, top-k]; nothing is dropped."""
        chosen = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dtype == torch.int64)
        self.requested += chosen.numel()
        rows = torch.zeros(self.experts, dtype=torch.int64, device=chosen.device)
        flat = chosen.flatten()
        rows.scatter_add_(0, flat, torch.ones_like(flat))  # bincount waits for the device
        self._add(number, rows, rows)

    # ---- sums ----------------------------------------------------------------------------------------------------

    def _add(self, number: int, rows: Tensor, useful: Tensor) -> None:
        if self._useful is None or self._rows is None:
            self._useful = torch.zeros(self.layers, self.experts, dtype=torch.int64, device=rows.device)
            self._rows = torch.zeros_like(self._useful)
        self._useful[number] += useful
        self._rows[number] += rows

    def take(self) -> tuple[int, Tensor, Tensor] | None:
        """Requested assignments, useful ones and rows ([layers, experts]) since the last call; None if there were none.

        Raises:
            Exception: an error inside a hook.
        """
        if self._error is not None:
            raise self._error
        if self._useful is None or self._rows is None:
            return None
        taken = self.requested, self._useful, self._rows
        self.requested, self._useful, self._rows = 0, None, None
        return taken

    def close(self) -> None:
        """Remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()
        _watchers.discard(self)


def _routers(chunk: Module, layers: Mapping[str, int]) -> Iterator[tuple[int, Module]]:
    """The modules that see the assignments, with their layer's number: megatron-core's routers, transformers' experts."""
    place = global_names(chunk)
    for name, module in chunk.named_modules():
        if name.endswith(".router") and hasattr(module, "topk"):
            path = place(name).removesuffix(".router")
        elif name.endswith(".experts") and type(module).__name__.endswith("Experts"):
            path = huggingface_names.plan_path(f"{name}.").removesuffix(".experts.")
        else:
            continue
        if path in layers:
            yield layers[path], module


def find_routing(chunks: Iterable[Module], plan: Plan, place: Place) -> Routing | None:
    """The counter of this rank, if all routers of the job were found on some rank; else None. A collective.

    Args:
        chunks: the model on this rank.
        plan: the plan of the whole model.
        place: the place of this process.
    """
    layers, chunks = expert_layers(plan), list(chunks)
    try:
        # Hooks would be compiled too, and the compiler does not support what they do.
        own: Routing | None = None if _compiled(chunks) else Routing(chunks, layers, expert_count(plan))
    except Exception:  # any framework's model, of any shape
        own = None
    said: list[Any] = [own and own.found]
    if place.world > 1:
        said = [None] * place.world
        torch.distributed.all_gather_object(said, own and own.found, group=place.group)
    if None not in said and set().union(*said) == set(layers.values()):
        return own
    if own is not None:
        own.close()
    return None


def _compiled(chunks: Iterable[Module]) -> bool:
    modules = (module for chunk in chunks for module in chunk.modules())
    return any(module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule" for module in modules)


# ---- what is dropped -----------------------------------------------------------------------------------------------------

_watchers: set[Routing] = set()


def _watch_dropping(routing: Routing) -> None:
    """Pass on routers' maps before tokens are dropped: afterwards, if experts are padded, they no longer show the requests."""
    _watchers.add(routing)
    module = sys.modules[_ROUTERS]
    dropping = getattr(module, _DROPPING)
    if hasattr(dropping, "watched"):
        return

    @wraps(dropping)
    def watched(routing_probs: Tensor, routing_map: Tensor, *args: Any, **kwargs: Any) -> Any:
        for one in _watchers:
            one.asked(routing_map)
        return dropping(routing_probs, routing_map, *args, **kwargs)

    watched.watched = True  # type: ignore[attr-defined]
    setattr(module, _DROPPING, watched)
