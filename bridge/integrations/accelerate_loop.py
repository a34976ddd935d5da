"""Hugging Face accelerate: your own loop around an ``Accelerator``, in one line after ``prepare``.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    throughput = add_throughput(accelerator, model, optimizer, convention="exact")
    ...
    accelerator.end_training()

A step is one of the optimizer that takes place: the micro-batches of ``accelerator.accumulate`` belong to one.  Rows go to the
accelerator's trackers, totals into the checkpoints of ``accelerator.save_state``.
"""

from __future__ import annotations

from typing import Any

from bridge.flops import ConfigError
from bridge.integrations.host_loggers import HostLoggers
from bridge.integrations.plain import Throughput

try:
    import accelerate
except ImportError as error:
    raise ImportError("bridge.integrations.accelerate_loop needs accelerate: pip install accelerate") from error


def add_throughput(
    accelerator: accelerate.Accelerator, model: Any, optimizer: Any, config: Any = None, **options: Any
) -> Throughput:
    """Count what ``model`` is called with while it trains.

    Args:
        accelerator: that has prepared both; the last row is written by its ``end_training``.
        model, optimizer: as ``prepare`` has returned them.
        config: prices the model; None: read from a model of transformers and its LoRA adapters.
        options: of :class:`~bridge.training.callbacks.ThroughputCallback`.
    """
    formats = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
    throughput = Throughput(
        accelerator.unwrap_model(model),
        config,
        number_format=formats.get(str(accelerator.mixed_precision)),
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
    _end_before(accelerator, throughput)
    return throughput.watch(getattr(optimizer, "optimizer", optimizer))


def _end_before(accelerator: accelerate.Accelerator, throughput: Throughput) -> None:
    ended = accelerator.end_training

    def end_training() -> None:
        throughput.end()
        ended()

    vars(accelerator)["end_training"] = end_training
