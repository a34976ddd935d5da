"""DeepSpeed: the engine of ``deepspeed.initialize``, at every stage of ZeRO.

::

    engine, _, loader, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    throughput = add_throughput(engine, convention="exact")
    ...
    throughput.end()

The batches that the model is called with in training are counted; a step ends with the ``engine.step()`` that ends an
accumulation.  Rows go to DeepSpeed's monitors, totals into the checkpoints of ``engine.save_checkpoint``.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from bridge.flops import ConfigError
from bridge.integrations import sidecar
from bridge.integrations.host_loggers import HostLoggers
from bridge.integrations.plain import Throughput
from bridge.integrations.wrapping import Arguments, Call, wrap

try:
    from deepspeed import DeepSpeedEngine, PipelineEngine
except ImportError as error:
    raise ImportError("bridge.integrations.deepspeed_engine needs DeepSpeed: pip install deepspeed") from error

_KEY = "throughput"
"""The key of the totals in a checkpoint's client state."""


def add_throughput(engine: DeepSpeedEngine, config: Any = None, **options: Any) -> Throughput:
    """Count the batches of the engine's model in training; ``end()`` or ``engine.destroy()`` writes the last row.

    Args:
        engine: the engine as returned by ``deepspeed.initialize``, before ``engine.load_checkpoint``.
        config: prices the model; None: it is read from a transformers model and its LoRA adapters.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`.
    """
    throughput = _Throughput(engine, config, **options)
    if why := _uncountable(engine):
        throughput.callback.fail(ConfigError(why))
        return throughput
    for name in ("step", "save_checkpoint", "load_checkpoint", "destroy"):
        wrap(engine, name, getattr(throughput, f"around_{name}"))
    throughput.see_calls()
    return throughput


def _uncountable(engine: DeepSpeedEngine) -> str:
    """Why the batches of all ranks do not add up to the work of the devices; empty if they do."""
    if isinstance(engine, PipelineEngine):
        return "a pipeline's first and last stage both draw each micro-batch, and its engine calls no whole model"
    if engine.sequence_parallel_size > 1:
        return f"{engine.sequence_parallel_size} ranks hold parts of each sequence (DeepSpeed-Ulysses), not whole ones"
    if engine.dp_world_size < dist.get_world_size():
        return (
            f"{dist.get_world_size()} ranks share the batches of {engine.dp_world_size}; only data-parallel ranks are supported"
        )
    return ""


class _Throughput(Throughput):
    """Throughput of a loop whose events are the engine's own functions."""

    def __init__(self, engine: DeepSpeedEngine, config: Any, **options: Any) -> None:
        low = "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else None
        super().__init__(engine.module, config, number_format=low, trackers=[HostLoggers(self._log)], **options)
        self._engine = engine
        self.steps = engine.global_steps

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        """Log to DeepSpeed's monitors, which write on the first rank only, over the number of trained samples."""
        if self._engine.monitor.enabled:
            self._engine.monitor.write_events([(name, value, self._engine.global_samples) for name, value in metrics.items()])

    def around_step(self, call: Call, arguments: Arguments) -> Any:
        result = call()
        if (done := self._engine.global_steps) > self.steps:
            self.steps = done - 1
            self.leave()
        return result

    def around_save_checkpoint(self, call: Call, arguments: Arguments) -> Any:
        self.settle()
        arguments["client_state"] = {**arguments["client_state"], _KEY: self.state_dict()}
        return call()

    def around_load_checkpoint(self, call: Call, arguments: Arguments) -> Any:
        path, state = result = call()
        self.steps = self._engine.global_steps
        if path is not None and _KEY in (state or {}):
            self.load_state_dict(state.pop(_KEY))
        elif self.steps:  # the checkpoint has no totals of these steps
            self.callback.load_state_dict(sidecar.SOMETHING_WAS_DONE)
        return result

    def around_destroy(self, call: Call, arguments: Arguments) -> Any:
        self.end()
        return call()
