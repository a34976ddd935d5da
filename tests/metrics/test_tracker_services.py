"""Trackers that talk to services: a collector, a scraper and local stores that are real, and read back."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.config.schema import LoggerConfig
from bridge.flops import ConfigError
from bridge.metrics.trackers import check_installed, open_trackers

ROWS = {
    10: {"throughput/mfu": 0.25, "throughput/step_time": 0.5, "throughput/flops/mlp": 3.0, "lm loss": 2.5, "text": "none"},
    20: {"throughput/mfu": 0.5, "throughput/step_time": 0.25, "throughput/flops/mlp": 4.0, "lm loss": 1.5},
}
TRACKERS = "bridge.metrics.trackers"


def options(folder: Path, target: str, **arguments) -> LoggerConfig:
    spec = {"_target_": f"{TRACKERS}.{target}", **arguments}
    return LoggerConfig(dir=str(folder), metrics_file=None, wandb_project=None, trackers=[spec])


def send(options: LoggerConfig):
    trackers = open_trackers(options, name="tiny", config={"model": {"num_layers": 2}, "api_key": "k"})
    trackers.summary({"device": "X", "parameters": {"total": 5}})
    for step, row in ROWS.items():
        trackers.log(row, step, commit=True)
    return trackers


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


def test_prometheus_scrapes_the_newest_row_and_reads_the_same_from_a_file(tmp_path):
    pytest.importorskip("prometheus_client", reason="pip install 'bridge-flops[prometheus]'")
    from prometheus_client.parser import text_string_to_metric_families

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_port
    trackers = send(options(tmp_path, "prometheus.PrometheusTracker", port=port, textfile_directory=str(tmp_path / "node")))
    scraped = ""
    for _ in range(100):
        with contextlib.suppress(OSError):  # its thread has not begun
            scraped = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        if 'bridge_step{run="tiny"} 20.0' in scraped:
            break
        time.sleep(0.05)
    trackers.close()
    for text in (scraped, (tmp_path / "node" / "bridge.prom").read_text()):
        families = {family.name: family for family in text_string_to_metric_families(text)}
        found = {name: (sample.labels, sample.value) for name, family in families.items() for sample in family.samples}
        assert found == {
            "bridge_step": ({"run": "tiny"}, 20.0),
            "bridge_throughput_mfu": ({"run": "tiny"}, 0.5),
            "bridge_throughput_step_time": ({"run": "tiny"}, 0.25),
            "bridge_throughput_flops": ({"run": "tiny", "component": "mlp"}, 4.0),
            "bridge_lm_loss": ({"run": "tiny"}, 1.5),
        }
        assert families["bridge_throughput_step_time"].documentation.endswith("[s]")


def test_trackio_keeps_rows_in_its_database(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="pip install 'bridge-flops[trackio]'")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path, raising=False)
    send(options(tmp_path, "trackio.TrackioTracker", project="p")).close()
    (name,) = sqlite_storage.SQLiteStorage.get_runs("p")
    rows = sqlite_storage.SQLiteStorage.get_logs("p", name)
    assert [{key: row[key] for key in ("step", *ROWS[20])} for row in rows] == [
        {"step": step, **{key: row[key] for key in ROWS[20]}} for step, row in ROWS.items()
    ]
    config = sqlite_storage.SQLiteStorage.get_run_config("p", name)
    assert (config["model"], config["device"], config["api_key"]) == ({"num_layers": 2}, "X", "***")


def test_swanlab_keeps_rows_in_its_folder(tmp_path, monkeypatch):
    pytest.importorskip("swanlab", reason="pip install 'bridge-flops[swanlab]'")
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    trackers = send(options(tmp_path, "swanlab.SwanLabTracker", project="p"))
    (tracker,) = trackers._trackers
    trackers.close()
    (folder,) = (tmp_path / "swanlog").glob("run-*")
    assert tracker.how_to_look() == [f"SwanLab: swanlab sync {folder}"]
    (log,) = folder.glob("*.swanlab")
    content = log.read_bytes()
    assert all(key.encode() in content for key in ROWS[20])
    assert b"***" in (folder / "files" / "config.yaml").read_bytes()


def test_what_is_not_installed_or_not_possible_is_said_before_training(monkeypatch):
    wanted = LoggerConfig(trackers=[{"_target_": f"{TRACKERS}.prometheus.PrometheusTracker", "port": 1}])
    monkeypatch.setattr(f"{TRACKERS}.opening.is_installed", lambda package: package != "prometheus_client")
    wanted.wandb_project = None
    with pytest.raises(ConfigError, match=r"logger\.trackers\[0\] needs prometheus_client.*bridge-flops\[prometheus\]"):
        check_installed(wanted)
    wanted.trackers = [{"_target_": f"{TRACKERS}.prometheus.PrometheusTracker"}]
    with pytest.raises(ConfigError, match="port .*or textfile_directory"):
        open_trackers(SimpleNamespace(trackers=wanted.trackers, dir="."))
