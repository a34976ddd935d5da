"""Prometheus: what its own parser reads, of a port and of a file."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bridge.flops import ConfigError
from bridge.metrics.keys import KEYS, find_key
from bridge.metrics.trackers.prometheus import PrometheusTracker, label_of, metric_of
from tests.metrics.trackers.sending import options, send


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


def test_every_key_has_a_gauge_of_its_own_with_a_name_that_prometheus_takes():
    names = [metric_of(key.name) for key in KEYS]
    assert len(set(names)) == len(KEYS)
    assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) for name in names)


@pytest.mark.parametrize(
    ("key", "gauge", "label"),
    [
        ("throughput/flops/mlp", "bridge_throughput_flops", "component"),
        ("throughput/mfu", "bridge_throughput_mfu", None),
        ("throughput/imbalance/experts/layer_3", "bridge_throughput_imbalance_experts_layer_", "number"),
        ("goodput/seconds/lost", "bridge_goodput_seconds", "part"),
        ("lm loss", "bridge_lm_loss", None),
        ("my/own-key", "bridge_my_own_key", None),
    ],
)
def test_a_family_is_one_gauge_with_a_label(key, gauge, label):
    known = find_key(key)
    assert metric_of(known.name if known else key) == gauge
    assert label_of(known) == label


def test_neither_port_nor_folder_is_an_error():
    with pytest.raises(ConfigError) as error:
        PrometheusTracker(None)
    assert str(error.value) == "PrometheusTracker needs port (to be scraped) or textfile_directory"
