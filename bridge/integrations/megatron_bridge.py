"""Megatron-Bridge: its callback manager calls our hooks as they are; what it lacks is a way to its batches.

``pretrain`` makes the data iterators by itself and shows them to the forward step alone, so the forward step is wrapped::

    throughput = ThroughputCallback(log_interval=10)
    pretrain(config, observed(forward_step, throughput), callbacks=[throughput])

Two things that its events do not tell are read off the loop's own functions: that a checkpoint begins (its event comes after
the checkpoint, or later still where saving is asynchronous), and that it is about to exit early, which closes W&B without an
event of the end.  Totals are kept beside its checkpoints.
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

#: Where Megatron-Bridge's loop is, and who else has its name.
_LOOP, _CALLER = "megatron.bridge.training.train", "megatron.bridge.training.pretrain"
_WATCHING = "_bridge_throughput"


def observed(forward_step: Callable[..., Any], throughput: ThroughputCallback) -> Callable[..., Any]:
    """The same forward step, its micro-batches counted as it takes them.

    Args:
        forward_step: with parameters named ``data_iterator`` and ``model``, in any place, as megatron-core's schedules call it;
            a partial of one will do.
        throughput: what counts. Under virtual pipelining each chunk takes every micro-batch: those of the first one count.

    Raises:
        ConfigError: ``forward_step`` has no such parameters.
    """
    wrapped = counted(forward_step, throughput)
    _watch(throughput)
    return wrapped


def counted(forward_step: Callable[..., Any], throughput: ThroughputCallback) -> Callable[..., Any]:
    """The forward step alone, for loops whose events come from elsewhere."""
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


# ---- what its events do not tell ----------------------------------------------------------------------------------------


def _watch(throughput: ThroughputCallback) -> None:
    """Hook the loop's start, save and exit for the callback that was registered last."""
    loop = sys.modules.get(_LOOP)
    if loop is None:  # a loop of another kind
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
