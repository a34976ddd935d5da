"""Composer: a ``Callback`` for its ``Trainer``.

::

    throughput = ThroughputComposerCallback(config, convention="exact")
    Trainer(model=model, train_dataloader=loader, callbacks=[throughput], ...).fit()

The device's batch is counted before Composer splits it into micro-batches.  Rows go to the Trainer's loggers, totals to its
checkpoints.  The last row is written at the end of ``fit``, before the last evaluation and before the loggers close.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.integrations.host_loggers import HostLoggers
from bridge.integrations.plain import Throughput

try:
    from composer import Callback, Logger, State
except ImportError as error:
    raise ImportError("bridge.integrations.composer_trainer needs Composer: pip install mosaicml") from error

#: Number formats by Composer's names of precisions.
_FORMATS = {"amp_bf16": "bf16", "amp_fp16": "fp16", "amp_fp8": "fp8", "bf16": "bf16", "fp32": "fp32"}


class ThroughputComposerCallback(Callback):
    """Exact FLOPs, MFU and token rates in the Trainer's loggers.

    Args:
        config: prices the model, see :func:`bridge.flops.compile_plan`.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`.
    """

    def __init__(self, config: Any, **options: Any) -> None:
        self._config, self._options = config, options
        self._saved: Mapping[str, Any] = {}
        self.throughput = Throughput(None, config, **options)

    def fit_start(self, state: State, logger: Logger) -> None:
        number_format = _FORMATS.get(str(getattr(state.precision, "value", state.precision)))
        model, options = state.model, self._options
        self.throughput = Throughput(
            model, self._config, number_format=number_format, trackers=[HostLoggers(logger.log_metrics)], **options
        )
        if self._saved:
            self.throughput.load_state_dict(self._saved)
        self.throughput.steps = int(state.timestamp.batch)

    def batch_start(self, state: State, logger: Logger) -> None:
        self.throughput.enter()
        self.throughput.count(state.batch)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.throughput.leave()

    def eval_start(self, state: State, logger: Logger) -> None:
        self.throughput.pause()

    def eval_end(self, state: State, logger: Logger) -> None:
        self.throughput.resume()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.throughput.end()

    def state_dict(self) -> dict[str, Any]:
        """Totals up to now; Composer asks all ranks for it when it saves."""
        self.throughput.settle()
        return self.throughput.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state
