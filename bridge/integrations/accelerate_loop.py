"""Hugging Face accelerate: your own loop around an ``Accelerator``, in one line after ``prepare``.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    throughput = add_throughput(accelerator, model, optimizer, convention="exact")
    ...
    accelerator.end_training()

A step is one step of the optimizer, with all of its micro-batches under ``accelerator.accumulate``.  Rows go to the accelerator's
trackers, totals into the checkpoints of ``accelerator.save_state``.
"""

from __future__ import annotations

from typing import Any

from bridge.flops import ConfigError
from bridge.integrations.host_loggers import HostLoggers
from bridge.integrations.plain import Throughput
from bridge.integrations.wrapping import Arguments, Call, wrap

try:
    import accelerate
except ImportError as error:
    raise ImportError("bridge.integrations.accelerate_loop needs accelerate: pip install accelerate") from error


def add_throughput(
    accelerator: accelerate.Accelerator, model: Any, optimizer: Any, config: Any = None, **options: Any
) -> Throughput:
    """Count what ``model`` is called with while it trains.

    Args:
        accelerator: the accelerator that prepared both; its ``end_training`` writes the last row.
        model, optimizer: the model and the optimizer as returned by ``prepare``.
        config: prices the model; None: it is read from a transformers model and its LoRA adapters.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`.
    """
    precision = str(accelerator.mixed_precision)
    throughput = Throughput(
        accelerator.unwrap_model(model),
        config,
        number_format=precision if precision in ("bf16", "fp16", "fp8") else None,
        trackers=[HostLoggers(lambda metrics, step: accelerator.log(metrics, step=step))],  # the main process alone writes
        **options,
    )
    layout = getattr(accelerator, "parallelism_config", None)
    if getattr(layout, "non_data_parallel_size", 1) > 1:
        shared = "ranks share their batches (tensor, context or sequence parallel); only data-parallel ranks are supported"
        throughput.callback.fail(ConfigError(shared))
        return throughput
    accelerator.register_for_checkpointing(throughput)
    accelerator.register_save_state_pre_hook(lambda *_: throughput.settle())

    def end_training(call: Call, arguments: Arguments) -> Any:
        throughput.end()
        return call()

    wrap(accelerator, "end_training", end_training)
    return throughput.watch(getattr(optimizer, "optimizer", optimizer))
