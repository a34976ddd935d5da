"""OpenTelemetry: rows as gauges to a collector, over OTLP/HTTP. What Megatron-LM sends too is also sent under its names.

In a recipe::

    logger:
      trackers:
        - _target_: bridge.metrics.trackers.otlp.OtlpTracker
          endpoint: http://collector:4318/v1/metrics

Put headers with a login in ``OTEL_EXPORTER_OTLP_HEADERS``, not in the configuration.
"""

from __future__ import annotations

import logging
from typing import Any

from bridge.metrics.keys import find_key
from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.opening import Start
from bridge.metrics.trackers.plain import doubles, flat, plain
from bridge.metrics.trackers.secrets import without_login, without_secrets
from bridge.metrics.trackers.tracker import Metrics

logger = logging.getLogger(__name__)

#: Megatron-LM's name of a key, and the factor from our unit to its unit.
MEGATRON = {
    "throughput/step_time": ("megatron.training.step_duration_ms", 1e3),
    "lm loss": ("megatron.training.loss", 1.0),
    "throughput/tflops/device": ("megatron.training.throughput_tflops", 1.0),
    "grad-norm": ("megatron.training.grad_norm", 1.0),
    "skipped-iterations": ("megatron.training.skipped_iters", 1.0),
    "learning-rate": ("megatron.training.learning_rate", 1.0),
    "throughput/tokens_per_sec": ("megatron.training.tokens_per_sec", 1.0),
    "throughput/memory/peak_allocated": ("megatron.training.memory_allocated_gb", 1e-9),
}
_NEVER_MS = 1e12


class OtlpTracker(BackgroundTracker):
    """One export per row.

    A collector that does not answer costs rows, not training: a row that cannot be sent is dropped.

    Args:
        start: of the run.
        endpoint: of the collector, with its path; None: ``OTEL_EXPORTER_OTLP_ENDPOINT``, else port 4318 of this machine.
        timeout: seconds that a row may take to be sent.
    """

    service, package, extra = "OpenTelemetry", "opentelemetry.exporter.otlp.proto.http", "opentelemetry"

    def __init__(self, start: Start, endpoint: str | None = None, timeout: float = 5.0) -> None:
        self._start, self._endpoint, self._timeout = start, endpoint, timeout
        self._gauges: dict[str, Any] = {}
        self.sent = self.lost = 0
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        numbers = {"step": float(step), **doubles(metrics)}
        self._put(lambda: self._send(numbers))

    def summary(self, facts: Metrics) -> None:
        """Facts are not metrics; the numbers among them are sent."""
        numbers = doubles(dict(flat(plain(facts))))
        self._put(lambda: self._send({f"bridge.run.{name}": number for name, number in numbers.items()}))

    def how_to_look(self) -> list[str]:
        lost = f", {self.lost} could not be sent" if self.lost else ""
        return [f"OpenTelemetry: {self.sent} rows to {without_login(self._endpoint or 'the collector')}{lost}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        for name in ("opentelemetry.exporter.otlp", "opentelemetry.sdk.metrics"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what is lost is said once, by us
        self._success = MetricExportResult.SUCCESS
        self._exporter = OTLPMetricExporter(endpoint=self._endpoint, timeout=self._timeout)
        told = {"service.name": "bridge", "bridge.run.name": self._start.name, "bridge.run.id": self._start.run_id}
        self._reader = PeriodicExportingMetricReader(_watched(self._exporter, self), export_interval_millis=_NEVER_MS)
        self._provider = MeterProvider([self._reader], Resource.create(without_secrets(told)), shutdown_on_exit=False)
        self._meter = self._provider.get_meter("bridge")

    def _send(self, numbers: dict[str, float]) -> None:
        for key, number in numbers.items():
            self._gauge(key).set(number)
            if key in MEGATRON:
                name, factor = MEGATRON[key]
                self._gauge(name).set(number * factor)
        self._provider.force_flush(timeout_millis=1e3 * self._timeout)

    def _gauge(self, key: str) -> Any:
        if key not in self._gauges:
            known = find_key(key)
            name = key if key.startswith(("megatron.", "bridge.")) else f"bridge.{key.replace('/', '.').replace(' ', '_')}"
            self._gauges[key] = self._meter.create_gauge(name, known.unit if known else "", known.meaning if known else "")
        return self._gauges[key]

    def _count(self, result: Any) -> None:
        self.sent += result is self._success
        self.lost += result is not self._success
        if self.lost == 1 and result is not self._success:
            where = without_login(self._endpoint or "the collector")
            logger.warning("OpenTelemetry: %s did not take a row. Training continues without it.", where)

    def _release(self) -> None:
        vars(self._exporter).pop("export", None)  # later exports are no rows and must not be counted
        self._exporter.shutdown()  # or the provider would send the last row again
        self._provider.shutdown(timeout_millis=1e3 * self._timeout)


def _watched(exporter: Any, tracker: OtlpTracker) -> Any:
    """The exporter, which now reports its results to the tracker."""
    export = exporter.export

    def watched(*arguments: Any, **options: Any) -> Any:
        result = export(*arguments, **options)
        tracker._count(result)
        return result

    exporter.export = watched
    return exporter
