"""Trackio: what its own database holds."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bridge.metrics.trackers.trackio import TrackioTracker
from tests.metrics.trackers.sending import ROWS, options, send


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


def test_a_run_measures_no_machine_and_opens_no_dashboard(tmp_path, monkeypatch):
    opened = []
    run = SimpleNamespace(log=lambda row, step: None, config={}, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **options: opened.append(options) or run))
    send(options(tmp_path, "trackio.TrackioTracker", project="p")).close()
    (given,) = opened
    assert not any(given[name] for name in ("embed", "auto_log_cpu", "auto_log_gpu"))
    assert (given["resume"], given["config"]["api_key"]) == ("allow", "***")


def test_a_package_that_is_not_there_is_one_warning_and_the_project_is_quoted(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "trackio", None)
    trackers = send(options(tmp_path, "trackio.TrackioTracker", project="my project"))
    trackers.close()
    (record,) = [record for record in caplog.records if record.name.startswith("bridge")]
    assert record.getMessage().startswith("TrackioTracker stopped: import of trackio halted")
    tracker = object.__new__(TrackioTracker)
    tracker._project = "my project"
    assert tracker.how_to_look() == ["Trackio: trackio show --project 'my project'"]
