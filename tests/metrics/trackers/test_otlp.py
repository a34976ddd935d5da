"""OpenTelemetry: a collector that is real gets each row; one that is dead or slow costs rows and no time."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bridge.metrics.keys import find_key
from bridge.metrics.trackers import open_trackers
from bridge.metrics.trackers.otlp import MEGATRON, OtlpTracker
from tests.metrics.trackers.sending import options, send


class Collector:
    """Takes what is posted, as long as it is told to."""

    def __init__(self, *, status: int = 200, delay: float = 0.0) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(delay)
                collector.bodies.append(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/metrics"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def gauges(self) -> list[dict[str, float]]:
        import gzip

        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found = []
        for body in self.bodies:
            raw = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
            request = ExportMetricsServiceRequest.FromString(raw)
            metrics = [m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics]
            found.append({metric.name: metric.gauge.data_points[0].as_double for metric in metrics})
            told = {a.key: a.value.string_value for r in request.resource_metrics for a in r.resource.attributes}
            assert (told["service.name"], told["bridge.run.name"]) == ("bridge", "tiny")
        return found


def test_a_collector_gets_each_row_under_our_names_and_megatrons(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'bridge-flops[opentelemetry]'")
    collector = Collector()
    trackers = send(options(tmp_path, "otlp.OtlpTracker", endpoint=collector.endpoint))
    trackers.close()
    facts, first, second = collector.gauges()
    assert facts == {"bridge.run.parameters.total": 5.0}
    assert (
        first.items()
        >= {
            "bridge.step": 10.0,
            "bridge.throughput.mfu": 0.25,
            "bridge.throughput.flops.mlp": 3.0,
            "bridge.lm_loss": 2.5,
            "megatron.training.loss": 2.5,
            "megatron.training.step_duration_ms": 500.0,
        }.items()
    )
    assert (second["bridge.step"], second["megatron.training.step_duration_ms"]) == (20.0, 250.0)


def silent() -> str:
    """Where somebody listens, and never says anything: the system itself takes the connection."""
    taken = socket.create_server(("127.0.0.1", 0))
    LISTENING.append(taken)
    return f"http://127.0.0.1:{taken.getsockname()[1]}/v1/metrics"


LISTENING: list[socket.socket] = []
RECEIVERS = {
    "dead": lambda: "http://user:secret@127.0.0.1:9/v1/metrics",  # refused
    "slow": lambda: Collector(delay=0.5).endpoint,
    "silent": silent,
}


@pytest.mark.parametrize("kind", RECEIVERS)
def test_a_receiver_that_is_dead_or_slow_costs_rows_and_no_time(tmp_path, caplog, kind):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'bridge-flops[opentelemetry]'")
    endpoint = RECEIVERS[kind]()
    metrics_file = tmp_path / "metrics.jsonl"
    config = options(tmp_path, "otlp.OtlpTracker", endpoint=endpoint, timeout=0.3)
    config.metrics_file = str(metrics_file)
    trackers = open_trackers(config, name="tiny")
    spent, waited = [], []
    for step in range(1, 6):
        before = time.thread_time(), time.monotonic()
        trackers.log({"x": step}, step, commit=True)
        spent.append(time.thread_time() - before[0])
        waited.append(time.monotonic() - before[1])
    trackers.close()
    assert sorted(spent)[2] < 2e-3  # processor time of the training thread, median of a row
    assert sorted(waited)[2] < 0.1  # a third of what a single row may take to be sent: none was waited for
    assert [json.loads(line)["step"] for line in metrics_file.read_text().splitlines()] == [1, 2, 3, 4, 5]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and "bridge" in record.name]
    assert len(said) == 1, said
    assert "did not take a row" in said[0]
    assert "secret" not in said[0]


def test_megatrons_names_with_their_units_and_what_a_run_is_called(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'bridge-flops[opentelemetry]'")
    assert {name for name, _ in MEGATRON.values()} == {
        f"megatron.training.{name}"
        for name in (
            "step_duration_ms",
            "loss",
            "throughput_tflops",
            "grad_norm",
            "skipped_iters",
            "learning_rate",
            "tokens_per_sec",
            "memory_allocated_gb",
        )
    }
    assert all(find_key(key) for key in MEGATRON)
    row = {"throughput/step_time": 0.25, "throughput/memory/peak_allocated": 3_000_000_000, "learning-rate": 0.5, "mine": 1}
    collector = Collector()
    trackers = open_trackers(options(tmp_path, "otlp.OtlpTracker", endpoint=collector.endpoint), name="tiny")
    (tracker,) = trackers._trackers
    trackers.log(row, 3, commit=True)
    trackers.close()
    (sent,) = collector.gauges()
    assert sent == {
        "bridge.step": 3.0,
        "bridge.throughput.step_time": 0.25,
        "megatron.training.step_duration_ms": 250.0,
        "bridge.throughput.memory.peak_allocated": 3e9,
        "megatron.training.memory_allocated_gb": 3.0,
        "bridge.learning-rate": 0.5,
        "megatron.training.learning_rate": 0.5,
        "bridge.mine": 1.0,
    }
    assert tracker.how_to_look() == [f"OpenTelemetry: 1 rows to {collector.endpoint}"]


def test_rows_that_were_lost_are_counted_and_an_address_has_no_login(tmp_path, caplog):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'bridge-flops[opentelemetry]'")
    collector = Collector(status=400)  # refused, and not to be tried again
    endpoint = collector.endpoint.replace("http://", "http://me:secret@")
    trackers = open_trackers(options(tmp_path, "otlp.OtlpTracker", endpoint=endpoint, timeout=2), name="tiny")
    (tracker,) = trackers._trackers
    assert isinstance(tracker, OtlpTracker)
    for step in (1, 2):
        trackers.log({"x": step}, step, commit=True)
    trackers.close()
    where = collector.endpoint.replace("http://", "http://***@")
    assert (tracker.sent, tracker.lost) == (0, 2)
    assert tracker.how_to_look() == [f"OpenTelemetry: 0 rows to {where}, 2 could not be sent"]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("bridge")]
    assert said == [f"OpenTelemetry: {where} did not take a row. Training continues without it."]
