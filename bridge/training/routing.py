"""What the routers of a built model gave to its experts, counted where they run: on the device, without waiting for it.

Counted are first passes in training, not the recomputation inside a backward pass.  A rank counts what its own routers gave
out, wherever the experts are: the sum over all ranks is what all experts did, with any dispatcher on any layout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from bridge.config.sources import huggingface_names
from bridge.flops.plan import Plan
from bridge.flops.routed import expert_count, expert_layers
from bridge.metrics.place import Place
from bridge.training.trainable import global_names

#: megatron-core's module of routers, and its function that drops and pads; it is one of the module's names.
_ROUTERS, _DROPPING = "megatron.core.transformer.moe.router", "apply_router_token_dropping"


def is_first_pass(module: Module) -> bool:
    """Whether a module runs for the first time on its input: in training, and not inside a backward pass."""
    return module.training and torch._C._current_graph_task_id() == -1


class Routing:
    """Counts of one rank since they were last taken.

    Args:
        chunks: the model on this rank.
        layers: path of each layer of experts in the plan -> its number.
        experts: of each layer.
    """

    def __init__(self, chunks: Iterable[Module], layers: Mapping[str, int], experts: int) -> None:
        self.layers, self.experts = len(layers), experts
        self.requested = 0
        """Assignments that tokens asked for: top-k each."""
        self.found: set[int] = set()
        """Layers that this rank counts."""
        self._useful: Tensor | None = None
        """[layers, experts] assignments that were asked for and not dropped."""
        self._rows: Tensor | None = None
        """[layers, experts] rows given out, with those that only fill experts up."""
        self._error: Exception | None = None
        self._handles: list[Any] = []
        self._now: tuple[int, Any] | None = None
        """The router that runs, and what it asked for before anything was dropped."""
        for chunk in chunks:
            for number, name, module in _routers(chunk, layers):
                self.found.add(number)
                self._watch(number, name, module)

    def _watch(self, number: int, name: str, module: Module) -> None:
        if hasattr(module, "topk") and hasattr(module, "routing"):
            self._handles += [
                module.register_forward_pre_hook(self._guarded(lambda router, args: self._enter(number))),
                module.register_forward_hook(self._guarded(lambda router, args, out: self._routed(number, router, out[1]))),
            ]
            _watch_dropping(self)
        else:
            self._handles.append(
                module.register_forward_pre_hook(
                    self._guarded(lambda one, args, kwargs: self._chosen(number, one, args, kwargs)), with_kwargs=True
                )  # fmt: skip
            )

    def _guarded(self, method: Callable[..., None]) -> Callable[..., None]:
        """A hook must not raise into a forward pass, and counts first passes alone."""

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

    def _enter(self, number: int) -> None:
        self._now = number, None

    def asked(self, before: Tensor) -> None:
        """The map [tokens, experts] of a router before tokens are dropped."""
        if self._now is not None:
            self._now = self._now[0], before

    def _routed(self, number: int, router: Any, routing_map: Tensor) -> None:
        """A map [tokens, experts] of booleans: after dropping, with padding."""
        before = self._now[1] if self._now is not None else None
        self._now = None
        self.requested += routing_map.shape[0] * router.topk
        rows = routing_map.sum(0)
        useful = rows if before is None else (routing_map & before.bool()).sum(0)
        self._add(number, rows, useful)

    # ---- transformers --------------------------------------------------------------------------------------------

    def _chosen(self, number: int, module: Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The chosen experts [tokens, top-k]; nothing is dropped."""
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
        """Requested assignments, useful ones and rows [layers, experts] since the last call; None for nothing.

        Raises:
            Exception: what a hook ran into.
        """
        if self._error is not None:
            raise self._error
        if self._useful is None or self._rows is None:
            return None
        taken = self.requested, self._useful, self._rows
        self.requested, self._useful, self._rows = 0, None, None
        return taken

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        _watchers.discard(self)


def _routers(chunk: Module, layers: Mapping[str, int]) -> Iterator[tuple[int, str, Module]]:
    """The modules that know who goes where: megatron-core's routers, transformers' experts."""
    place = global_names(chunk)
    for name, module in chunk.named_modules():
        if name.endswith(".router") and hasattr(module, "topk"):
            path = place(name).removesuffix(".router")
        elif name.endswith(".experts") and type(module).__name__.endswith("Experts"):
            path = huggingface_names.plan_path(f"{name}.").removesuffix(".experts.")
        else:
            continue
        if path in layers:
            yield layers[path], name, module


def find_routing(chunks: Iterable[Module], plan: Plan, place: Place) -> Routing | None:
    """The counts of a job whose routers are all found, on one rank or another; None where some are not. A collective.

    Args:
        chunks: the model on this rank.
        plan: of the whole model.
        place: of this process.
    """
    layers, chunks = expert_layers(plan), list(chunks)
    try:
        # Hooks would be compiled too, and say so in a language that a compiler does not take.
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
    """Show routers' maps before tokens are dropped: behind that, where experts are padded, they do not say what was asked for."""
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
