"""Megatron-Bridge: its callback manager calls our hooks directly, but has no access to batches.

``pretrain`` creates the data iterators and passes them to the forward step only, so the forward step is wrapped::

    throughput = ThroughputCallback(log_interval=10)
    pretrain(config, observed(forward_step, throughput), callbacks=[throughput])

Two events are missing, for which functions of the loop are wrapped: a checkpoint begins (its own event comes after it, or even
later if saving is asynchronous), and the loop is about to exit early, which closes W&B without an event.  Totals are kept beside
its checkpoints.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from bridge.flops import ConfigError
from bridge.integrations import sidecar
from bridge.integrations.megatron_bridge_flops import get_model_chunk_vp_stage
from bridge.integrations.wrapping import wrap
from bridge.training.callbacks import CallbackContext, ThroughputCallback

#: The modules that have Megatron-Bridge's ``train``: its own, and that of its caller.
_LOOP, _CALLER = "megatron.bridge.training.train", "megatron.bridge.training.pretrain"
_WATCHING = "_bridge_throughput"


def observed(forward_step: Callable[..., Any], throughput: ThroughputCallback) -> Callable[..., Any]:
    """The forward step, wrapped so that the micro-batches it takes are counted.

    Args:
        forward_step: a function, or a partial, with parameters named ``data_iterator`` and ``model`` at any position, as
            megatron-core's schedules call it.
        throughput: the callback. With virtual pipelining every chunk takes all micro-batches; those of the first chunk count.

    Raises:
        ConfigError: ``forward_step`` has no such parameters.
    """
    wrapped = counted(forward_step, throughput)
    _watch(throughput)
    return wrapped


def counted(forward_step: Callable[..., Any], throughput: ThroughputCallback) -> Callable[..., Any]:
    """The wrapped forward step alone, for loops whose events are wrapped elsewhere."""
    signature = inspect.signature(forward_step)
    if not {"data_iterator", "model"} <= set(signature.parameters):
        raise ConfigError(
            f"forward_step{signature} needs parameters named data_iterator and model to be observed; rename its parameters"
        )

    @functools.wraps(forward_step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        if get_model_chunk_vp_stage(bound.arguments["model"]) in (None, 0):
            bound.arguments["data_iterator"] = throughput.observe(bound.arguments["data_iterator"])
        return forward_step(*bound.args, **bound.kwargs)

    return wrapped


# ---- missing events -----------------------------------------------------------------------------------------------------


def _watch(throughput: ThroughputCallback) -> None:
    """Wrap the loop's start, save and exit, for the callback that was registered last."""
    loop = sys.modules.get(_LOOP)
    if loop is None:  # another loop
        return
    if not hasattr(loop, _WATCHING):
        for module in (loop, sys.modules.get(_CALLER)):
            if module is not None:
                wrap(module, "train", _begins)
        wrap(loop, "save_checkpoint_and_time", _saves)
        wrap(loop, "checkpoint_and_decide_exit", _decides)
    setattr(loop, _WATCHING, throughput)


def _watching() -> ThroughputCallback:
    return getattr(sys.modules[_LOOP], _WATCHING)


def _begins(train: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    state = arguments["global_state"]
    checkpoint, step = state.cfg.checkpoint, state.train_state.step
    if step and checkpoint.load:
        sidecar.load(_watching(), checkpoint.load, step)
    return train()


def _saves(save: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    throughput, state = _watching(), arguments["state"]
    throughput.on_checkpoint_save(_context(arguments))
    result = save()
    if not arguments.get("non_persistent_ckpt"):
        sidecar.save(throughput, state.cfg.checkpoint.save, state.train_state.step)
    return result


def _decides(decide: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    exits = decide()
    if exits:  # on all ranks; W&B is closed next
        _watching().on_train_end(_context(arguments))
    return exits


def _context(arguments: dict[str, Any]) -> CallbackContext:
    return CallbackContext(state=arguments["state"], model=arguments["model"])
