"""SwanLab: what its folder holds."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bridge.metrics.trackers.swanlab import SwanLabTracker
from tests.metrics.trackers.sending import ROWS, options, send


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


def test_the_run_is_opened_with_the_configuration_without_its_secrets(tmp_path, monkeypatch):
    opened = []
    run = SimpleNamespace(log=lambda numbers, step: None, config={})
    module = SimpleNamespace(init=lambda **options: opened.append(options) or run, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "swanlab", module)
    send(options(tmp_path, "swanlab.SwanLabTracker", project="p", mode="offline")).close()
    (given,) = opened
    assert (given["project"], given["name"], given["mode"]) == ("p", "tiny", "offline")
    assert (given["config"]["model"], given["config"]["api_key"]) == ({"num_layers": 2}, "***")


@pytest.mark.parametrize(
    ("mode", "account", "chosen", "look"),
    [
        (None, None, "offline", ["SwanLab: swanlab sync '{0}/run-2'"]),
        (None, "k", "online", []),
        ("local", "k", "local", ["SwanLab: swanlab watch '{0}'"]),
        ("offline", "k", "offline", ["SwanLab: swanlab sync '{0}/run-2'"]),
        ("disabled", None, "disabled", []),
    ],
)
def test_the_mode_follows_from_the_account_and_says_how_to_look(tmp_path, monkeypatch, mode, account, chosen, look):
    monkeypatch.setitem(sys.modules, "swanlab", None)  # its thread ends at once
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    if account:
        monkeypatch.setenv("SWANLAB_API_KEY", account)
    folder = tmp_path / "a run" / "swanlog"
    for name in ("run-1", "run-2", "other"):
        (folder / name).mkdir(parents=True)
    tracker = SwanLabTracker(SimpleNamespace(options=SimpleNamespace(dir=tmp_path / "a run")), mode=mode)
    assert tracker._mode == chosen
    assert tracker.how_to_look() == [line.format(folder) for line in look]
    with pytest.raises(ImportError):
        tracker.close()
