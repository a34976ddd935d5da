"""DeepSpeed: ZeRO in all its stages, in one line after ``initialize``.

::

    engine, *_ = deepspeed.initialize(model=model, config=options)
    throughput = add_throughput(engine, convention="exact")
    ...
    throughput.end()

A step is one of the engine's ``global_steps``.  Totals go into the ``client_state`` of its checkpoints.
"""

from __future__ import annotations

from typing import Any

from bridge.flops import ConfigError
from bridge.integrations.plain import Throughput
from bridge.integrations.sidecar import SOMETHING_WAS_DONE

_TOTALS = "bridge_throughput"


def add_throughput(engine: Any, config: Any = None, **options: Any) -> Throughput:
    """Count what the engine's model is called with while it trains.

    Args:
        engine: what ``deepspeed.initialize`` has returned, for a model that every rank has whole (ZeRO splits its weights).
        config: prices the model; None: read from a model of transformers.
        options: of :class:`~bridge.training.callbacks.ThroughputCallback`; ``log_interval`` is ``steps_per_print`` if unset.
    """
    low = "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else None
    interval = {"log_interval": engine.steps_per_print()} if engine.steps_per_print() else {}
    throughput = Throughput(engine.module, config, number_format=low, **{**interval, **options})
    if problem := _problem(engine):
        throughput.callback.fail(ConfigError(problem))
        return throughput
    throughput.steps = engine.global_steps
    _Engine(engine, throughput)
    return throughput


def _problem(engine: Any) -> str | None:
    """Why the batches of the ranks do not add up to the work of the devices, if so."""
    if hasattr(engine, "num_stages"):
        return (
            f"a pipeline of {engine.num_stages} stages draws every batch on its first and on its last stage and shows its model "
            "activations; count its batches on the first stage: bridge.integrations.plain with contributes="
        )
    shared = {
        "tensor parallel": getattr(engine, "autotp_size", lambda: 0)(),
        "model parallel": getattr(engine, "mp_world_size", 1),
        "sequence parallel": getattr(engine, "sequence_parallel_size", 1),
    }
    for kind, size in shared.items():
        if isinstance(size, int) and size > 1:
            return f"{size} ranks share their batches ({kind}); counted are data-parallel ranks"
    return None


class _Engine:
    """The engine's methods that tell of events, with ours around them."""

    def __init__(self, engine: Any, throughput: Throughput) -> None:
        self._engine, self._throughput = engine, throughput
        self._step, self._save, self._load = engine.step, engine.save_checkpoint, engine.load_checkpoint
        engine.step, engine.save_checkpoint, engine.load_checkpoint = self.step, self.save_checkpoint, self.load_checkpoint
        throughput.see_calls()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        before = self._engine.global_steps
        result = self._step(*args, **kwargs)
        if self._engine.global_steps != before:  # an optimizer step, and not only one more micro-batch
            self._throughput.leave()
        return result

    def save_checkpoint(self, save_dir: Any, tag: Any = None, client_state: Any = None, **kwargs: Any) -> Any:
        self._throughput.settle()
        state = {**(client_state or {}), _TOTALS: self._throughput.state_dict()}
        return self._save(save_dir, tag=tag, client_state=state, **kwargs)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        path, client_state = self._load(*args, **kwargs)
        if path is not None:
            nothing_known = {"steps": self._engine.global_steps, "totals": SOMETHING_WAS_DONE}
            self._throughput.load_state_dict((client_state or {}).pop(_TOTALS, nothing_known))
        return path, client_state
