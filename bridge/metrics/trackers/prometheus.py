"""Prometheus: the newest row as gauges, on a port to be scraped, or in a file for the node exporter's textfile collector.

In a recipe::

    logger:
      trackers:
        - _target_: bridge.metrics.trackers.prometheus.PrometheusTracker
          port: 9464

Keys of a family share a gauge: ``throughput/flops/mlp`` is ``bridge_throughput_flops{component="mlp"}``.
"""

from __future__ import annotations

import os
import re
from typing import Any

from bridge.flops.shapes import ConfigError
from bridge.metrics.keys import Key, find_key
from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.opening import Start
from bridge.metrics.trackers.plain import doubles
from bridge.metrics.trackers.tracker import Metrics

_STRANGE = re.compile(r"[^a-zA-Z0-9_]+")


def metric_of(key: str) -> str:
    """The name of the gauge of a key or of a family."""
    return "bridge_" + _STRANGE.sub("_", key.partition("<")[0].strip("/"))


def label_of(key: Key | None) -> str | None:
    """The label that distinguishes the members of a family; None for a single key."""
    return key.name.partition("<")[2].rstrip(">") if key and key.prefix else None


class PrometheusTracker(BackgroundTracker):
    """Gauges named ``bridge_<key>``, with the run's name as a label.

    Args:
        start: start of the run.
        port: port to be scraped by a Prometheus server; None: none.
        address: address of the port; ``0.0.0.0`` for servers on other machines.
        textfile_directory: folder of the node exporter's textfile collector; None: no file.

    Raises:
        ConfigError: There is neither a port nor a directory.
    """

    service, package, extra = "Prometheus", "prometheus_client", "prometheus"

    def __init__(
        self,
        start: Start,
        port: int | None = None,
        address: str = "127.0.0.1",
        textfile_directory: str | None = None,
    ) -> None:
        if port is None and textfile_directory is None:
            raise ConfigError("PrometheusTracker needs port (to be scraped) or textfile_directory")
        self._start, self._port, self._address = start, port, address
        self._file = os.path.join(textfile_directory, "bridge.prom") if textfile_directory else None
        self._gauges: dict[str, Any] = {}
        self._server: Any = None
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        numbers = {"step": float(step), **doubles(metrics)}
        self._put(lambda: self._show(numbers))

    def summary(self, facts: Metrics) -> None:
        """Facts are not metrics, and results were in the last row: nothing to do."""

    def how_to_look(self) -> list[str]:
        return [f"Prometheus: {self._file}"] if self._file else []

    # In the tracker's own thread.

    def _open(self) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._registry = CollectorRegistry()
        if self._file:
            os.makedirs(os.path.dirname(self._file), exist_ok=True)
        if self._port is not None:
            self._server, _ = start_http_server(self._port, self._address, self._registry)

    def _show(self, numbers: dict[str, float]) -> None:
        from prometheus_client import write_to_textfile

        for key, number in numbers.items():
            self._gauge(key).set(number)
        if self._file:
            write_to_textfile(self._file, self._registry)

    def _gauge(self, key: str) -> Any:
        from prometheus_client import Gauge

        known = find_key(key)
        prefix, label, name = known.prefix if known else None, label_of(known), metric_of(known.name if known else key)
        if name not in self._gauges:
            meaning = f"{known.meaning} [{known.unit}]" if known else key
            labels = ["run", *([label] if label else [])]
            self._gauges[name] = Gauge(name, meaning, labels, registry=self._registry)
        values = [self._start.name, *([key.removeprefix(prefix)] if prefix else [])]
        return self._gauges[name].labels(*values)

    def _release(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
