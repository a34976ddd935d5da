"""Lightning: a ``Callback`` for its ``Trainer``.

::

    throughput = ThroughputLightningCallback(from_huggingface(model.config), convention="exact")
    Trainer(callbacks=[throughput], ...).fit(module, dataloader)

Rows go to the Trainer's loggers under the number of completed optimizer steps, in a W&B run under ``bridge/``; the micro-batches
of ``accumulate_grad_batches`` belong to one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bridge.flops import ConfigError
from bridge.integrations.host_loggers import HostLoggers
from bridge.metrics.host import Host
from bridge.metrics.trackers import Trackers
from bridge.metrics.trackers.wandb import among_others
from bridge.training.callbacks import CallbackContext, ThroughputCallback

try:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import WandbLogger
except ImportError as error:
    raise ImportError("bridge.integrations.lightning_trainer needs Lightning: pip install lightning") from error

#: Number formats by parts of Lightning's names for precisions.
_FORMATS = {"transformer-engine": "fp8", "bf16": "bf16", "16": "fp16"}


class ThroughputLightningCallback(Callback):
    """Exact FLOPs, MFU and token rates in the Trainer's loggers; totals in its checkpoints.

    Args:
        config: prices the model, see :func:`bridge.flops.compile_plan`.
        read: returns for a batch a mapping with ``attention_mask``, ``input_ids``, ``cu_seqlens``, ...; None: batches are such.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`; ``log_interval`` is ``log_every_n_steps`` if
            unset.
    """

    def __init__(self, config: Any, read: Callable[[Any], Any] | None = None, **options: Any) -> None:
        self.throughput = ThroughputCallback(**options)
        self._config, self._read, self._options = config, read, options
        self._context = CallbackContext(state=None, model=[])
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.throughput.close()  # an earlier training may have failed
            self.throughput = ThroughputCallback(**self._options)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._steps = trainer.global_step
        run = Host(
            config=self._config,
            step=lambda: self._steps,
            log_interval=trainer.log_every_n_steps or None,  # type: ignore[attr-defined]
            trackers=Trackers([HostLoggers(partial(_log, trainer))]),
            number_format=next((name for part, name in _FORMATS.items() if part in str(trainer.precision)), "fp32"),
            model=[pl_module],
        )
        self._context = CallbackContext(state=run, model=[pl_module])
        replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", trainer.world_size)
        if replicas == trainer.world_size:
            self.throughput.on_train_start(self._context)
        else:
            shared = f"{trainer.world_size} ranks share the batches of {replicas}; only data-parallel ranks are supported"
            self.throughput.fail(ConfigError(shared))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.throughput.on_train_step_start(self._context)
        self.throughput.count(self._read(batch) if self._read else batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._steps:  # an optimizer step, not only another micro-batch
            self._steps = trainer.global_step
            self.throughput.on_train_step_end(self._context)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.throughput.on_eval_start(self._context)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.throughput.on_eval_end(self._context)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.throughput.on_train_end(self._context)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._context.state is not None:
            self.throughput.abandon(self._context)

    def state_dict(self) -> dict[str, Any]:
        """Totals up to now; Lightning asks all ranks for it when it saves."""
        self.throughput.on_checkpoint_save(self._context)
        return self.throughput.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.throughput.load_state_dict(state_dict)


def _log(trainer: Trainer, metrics: dict[str, Any], step: int) -> None:
    """Lightning lets only the first rank write."""
    for logger in trainer.loggers:
        logger.log_metrics(among_others(metrics, step) if isinstance(logger, WandbLogger) else dict(metrics), step)
