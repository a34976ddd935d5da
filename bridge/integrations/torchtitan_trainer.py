"""torchtitan: its ``Trainer``, once built and before ``train``.

::

    trainer = config.build()
    throughput = add_throughput(trainer, model, convention="exact")
    trainer.train()
    trainer.close()

The batches of each completed step are counted before context parallelism shards them; documents begin where ``positions``
restart.  Rows go to torchtitan's loggers every ``metrics.log_freq`` steps, the last one at the end of ``train``.  Totals are kept
beside its checkpoints, in ``step-100/throughput.json``, because with another entry in them older ones could not be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bridge.integrations import sidecar
from bridge.integrations.host_loggers import HostLoggers
from bridge.integrations.plain import Throughput
from bridge.integrations.wrapping import Arguments, Call, wrap

try:
    from torchtitan.trainer import Trainer
except ImportError as error:
    raise ImportError("bridge.integrations.torchtitan_trainer needs torchtitan: pip install torchtitan") from error

_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
#: Dimensions whose ranks receive the same batches.
_SHARED = ("tp", "cp", "pp")
_CHECKPOINT = "step-{step}"


def add_throughput(trainer: Trainer, config: Any, **options: Any) -> Throughput:
    """Count the trainer's batches from now on.

    Args:
        trainer: the trainer, before its ``train``.
        config: prices the model, see :func:`bridge.flops.compile_plan`.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`; ``log_interval`` is torchtitan's if unset.
    """
    throughput = _Throughput(trainer, config, **options)
    wrap(trainer, "train", throughput.around_train)
    wrap(trainer, "train_step", throughput.around_train_step)
    wrap(trainer.checkpointer, "load", throughput.around_load)
    wrap(trainer.checkpointer, "save", throughput.around_save)
    if (validator := getattr(trainer, "validator", None)) is not None:
        wrap(validator, "validate", throughput.around_validate)
    return throughput


def _contributes(dimensions: Any) -> bool:
    """Whether this rank counts its batches: the first one of the ranks that receive the same batches does."""
    meshes = [dimensions.get_optional_mesh(name) for name in _SHARED]
    return all(mesh is None or mesh.get_local_rank() == 0 for mesh in meshes)


class _Throughput(Throughput):
    """Throughput of a loop whose events are the trainer's own functions."""

    def __init__(self, trainer: Trainer, config: Any, **options: Any) -> None:
        super().__init__(
            None,
            config,
            number_format=_FORMATS.get(trainer.config.training.mixed_precision_param),
            # The logger is looked up at each row, because torchtitan decides which ranks have one.
            trackers=[HostLoggers(lambda metrics, step: trainer.metrics_processor.logger.log(metrics, step))],
            **{"log_interval": trainer.config.metrics.log_freq, "contributes": _contributes(trainer.parallel_dims), **options},
        )
        self._trainer = trainer

    def around_train(self, call: Call, arguments: Arguments) -> Any:
        result = call()
        self.end()
        return result

    def around_train_step(self, call: Call, arguments: Arguments) -> Any:
        taken: list[Any] = []
        arguments["data_iterator"] = _noted(arguments["data_iterator"], taken)
        self.steps = self._trainer.step - 1
        self.enter()
        result = call()  # raises if the data end within the step; then nothing was trained
        for batch in taken:
            self.count(batch)
        self.leave()
        return result

    def around_validate(self, call: Call, arguments: Arguments) -> Any:
        with self.evaluation():
            return call()

    def around_load(self, call: Call, arguments: Arguments) -> Any:
        loaded = call()
        if loaded and self._trainer.step and (folder := self._folder()):
            sidecar.load(self.callback, folder, self._trainer.step, _CHECKPOINT)
        return loaded

    def around_save(self, call: Call, arguments: Arguments) -> Any:
        saved = call()  # called after every step; true if it saves
        if saved and (folder := self._folder()):
            self.settle()
            sidecar.save(self.callback, folder, arguments["curr_step"], _CHECKPOINT)
        return saved

    def _folder(self) -> str:
        """The folder of the checkpoints; empty if it is remote."""
        folder = str(self._trainer.checkpointer.folder)
        return "" if "://" in folder else folder


def _noted(batches: Iterator[Any], taken: list[Any]) -> Iterator[Any]:
    """The batches; a copy of each dict is kept with its tensors on the host, because the trainer moves them to the device."""
    for inputs, labels in batches:
        taken.append(dict(inputs))
        yield inputs, labels
