"""Megatron-Bridge: its callback manager calls our hooks as they are; what it lacks is a way to its batches.

``pretrain`` makes the data iterators by itself and shows them to the forward step alone, so the forward step is wrapped::

    throughput = ThroughputCallback(log_interval=10)
    pretrain(config, observed(forward_step, throughput), callbacks=[throughput])
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from bridge.flops import ConfigError
from bridge.training.callbacks import ThroughputCallback

try:
    from megatron.core.utils import unwrap_model
except ImportError as error:
    raise ImportError("bridge.integrations.megatron_bridge needs megatron-core: pip install megatron-core") from error


def observed(forward_step: Callable[..., Any], throughput: ThroughputCallback) -> Callable[..., Any]:
    """The same forward step, its micro-batches counted as it takes them.

    Args:
        forward_step: with parameters named ``data_iterator`` and ``model``, in any place, as megatron-core's schedules call it.
        throughput: what counts. Under virtual pipelining each chunk takes every micro-batch: those of the first one count.

    Raises:
        ConfigError: ``forward_step`` has no such parameters.
    """
    signature = inspect.signature(forward_step)
    if not {"data_iterator", "model"} <= set(signature.parameters):
        raise ConfigError(f"forward_step{signature} needs parameters data_iterator and model to be observed; rename its own")

    @functools.wraps(forward_step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        if getattr(unwrap_model(bound.arguments["model"]), "vp_stage", None) in (None, 0):
            bound.arguments["data_iterator"] = throughput.observe(bound.arguments["data_iterator"])
        return forward_step(*bound.args, **bound.kwargs)

    return wrapped
