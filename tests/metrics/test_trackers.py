"""Rows arrive whole and in order; a tracker that fails is one warning; W&B is real and read back."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.config.schema import LoggerConfig
from bridge.flops import ConfigError
from bridge.metrics.trackers import (
    JsonlTracker,
    Trackers,
    check_installed,
    default_mode,
    open_trackers,
    wandb,
    without_secrets,
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Recorder:
    """Remembers its rows; fails at a given step."""

    def __init__(self, fails_at=None):
        self.rows, self.facts, self.closed, self.fails_at = [], {}, 0, fails_at

    def log(self, metrics, step):
        if step == self.fails_at:
            raise OSError(28, "No space left on device")
        self.rows.append((step, dict(metrics)))

    def summary(self, facts):
        self.facts.update(facts)

    def close(self):
        self.closed += 1

    def how_to_look(self):
        return ["look"]


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_parts_of_a_row_come_together():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 10)
    assert recorder.rows == []
    trackers.log({"mfu": 0.5}, 10, commit=True)
    assert recorder.rows == [(10, {"loss": 2.0, "mfu": 0.5})]


def test_a_report_that_comes_after_the_next_steps_loss_still_finds_its_row():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 1)
    trackers.log({"loss": 1.0}, 2)
    trackers.log({"mfu": 0.5}, 1, commit=True)
    trackers.log({"mfu": 0.6}, 2, commit=True)
    assert recorder.rows == [(1, {"loss": 2.0, "mfu": 0.5}), (2, {"loss": 1.0, "mfu": 0.6})]


def test_without_commits_rows_are_written_when_later_ones_come_and_at_the_end():
    recorder = Recorder()
    trackers = Trackers([recorder])
    for step in (1, 2, 3):
        trackers.log({"loss": step}, step)
    assert [step for step, _ in recorder.rows] == [1]
    trackers.close()
    trackers.close()
    assert [step for step, _ in recorder.rows] == [1, 2, 3]
    assert recorder.closed == 1


def test_committing_nothing_writes_the_open_rows_before_it_and_no_empty_row():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 1)
    trackers.log({}, 2, commit=True)
    assert recorder.rows == [(1, {"loss": 2.0})]


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(caplog):
    broken, healthy = Recorder(fails_at=2), Recorder()
    trackers = Trackers([broken, healthy])
    for step in (1, 2, 3):
        trackers.log({"x": step}, step, commit=True)
    trackers.summary({"done": True})
    trackers.close()
    assert [step for step, _ in healthy.rows] == [1, 2, 3]
    assert [step for step, _ in broken.rows] == [1]
    assert (broken.facts, broken.closed) == ({}, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Recorder stopped: [Errno 28] No space left on device. Training continues without it."
    ]


def test_a_tracker_without_its_methods_is_one_warning_too(caplog):
    trackers = Trackers([SimpleNamespace(log=lambda metrics, step: None)])
    trackers.log({"x": 1}, 1, commit=True)
    trackers.summary({"done": True})
    trackers.close()
    assert [record.getMessage().partition(" stopped: ")[2] for record in caplog.records] == [
        "'types.SimpleNamespace' object has no attribute 'summary'. Training continues without it."
    ]


# ---- JSON lines -----------------------------------------------------------------------------------------------------


def test_jsonl_holds_one_object_per_row_with_exact_integers(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"throughput/total_flops": 10**30 + 1, "loss": math.nan, "numpy": __import__("numpy").float64(0.5)}, 10)
    assert rows(path) == [{"step": 10, "throughput/total_flops": 10**30 + 1, "loss": "nan", "numpy": 0.5}]
    tracker.summary({"device": "X", "layers": (1, 2)})
    tracker.summary({"done": True})
    tracker.close()
    assert json.loads((tmp_path / "run" / "metrics.summary.json").read_text()) == {
        "device": "X",
        "layers": [1, 2],
        "done": True,
    }


def test_a_resumed_run_drops_the_rows_of_steps_that_are_trained_again_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
    tracker = JsonlTracker(path, step=20)
    tracker.log({}, 30)
    assert rows(path) == [{"step": 10}, {"step": 20}, {"step": 30}]


def test_a_new_run_keeps_the_old_file_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n')
    JsonlTracker(path).log({}, 5)
    assert rows(path) == [{"step": 5}]
    assert rows(tmp_path / "metrics.jsonl.previous") == [{"step": 10}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_warning(caplog):
    trackers = Trackers([JsonlTracker("/dev/full")])
    for step in (1, 2, 3):
        trackers.log({"x": 1}, step, commit=True)
    trackers.close()
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def options(tmp_path, **changes):
    return SimpleNamespace(
        **{
            "dir": str(tmp_path),
            "metrics_file": None,
            "wandb_project": None,
            "wandb_entity": None,
            "wandb_exp_name": None,
            "wandb_mode": None,
            "wandb_tags": [],
            **changes,
        }
    )


def test_a_file_that_cannot_be_opened_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trackers = open_trackers(options(tmp_path, metrics_file=str(tmp_path / "file" / "metrics.jsonl")))
    trackers.log({"x": 1}, 1, commit=True)
    assert not trackers
    (record,) = caplog.records
    assert "logger.metrics_file=" in record.getMessage()


# ---- W&B ------------------------------------------------------------------------------------------------------------


def inspect(folder):
    """Records of an offline run, by ``wandb leet inspect``."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    return [json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()]


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_offline_unless_an_account_is_configured(no_account, monkeypatch, tmp_path):
    assert default_mode() == "offline"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert default_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert default_mode() == "offline"


def test_secrets_stay_here():
    options = {"logger": {"wandb_api_key": "k", "dir": "runs"}, "list": [{"password": "p"}], "tokenizer": "byte"}
    assert without_secrets(options) == {
        "logger": {"wandb_api_key": "***", "dir": "runs"},
        "list": [{"password": "***"}],
        "tokenizer": "byte",
    }


def test_wandb_offline_read_back_and_resumed(no_account, tmp_path):
    wanted = options(tmp_path, wandb_project="bridge-test", wandb_exp_name="name")
    first = open_trackers(wanted, config={"model": {"num_layers": 2}, "api_key": "k"})
    first.summary({"device": "X", "peak_flops": 1e12})
    for step in (10, 20):
        first.log({"throughput/total_flops": step * 10**12}, step, commit=True)
    first.close()
    second = open_trackers(wanted, step=20, run_id=first.run_id)
    second.log({"throughput/total_flops": 30 * 10**12}, 30, commit=True)
    look = second.how_to_look()
    second.close()

    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    # A second start within the same second gets a suffix after the id.
    assert all(first.run_id in folder.name for folder in folders)
    assert look == [] or "wandb leet" in look[0]
    records = [record for folder in folders for record in inspect(folder)]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["step"], row["_step"], row["throughput/total_flops"]) for row in history] == [
        (10, 10, 10 * 10**12),
        (20, 20, 20 * 10**12),
        (30, 30, 30 * 10**12),
    ]
    options_shown, facts = {}, {}
    for record in records:
        options_shown |= record.get("run", record.get("config", {})).get("config", record.get("config", {})).get("update", {})
        facts |= record.get("summary", {}).get("update", {})
    assert {key: options_shown.get(key) for key in ("model", "api_key", "device", "peak_flops")} == {
        "model": {"num_layers": 2},
        "api_key": "***",
        "device": None,  # what was found out is no option
        "peak_flops": None,
    }
    assert (facts["device"], facts["peak_flops"]) == ("X", 1e12)
    steps = {record["metric"]["step_metric"] for record in records if "step_metric" in record.get("metric", {})}
    assert steps == {"step"}
    assert options_shown["units"]["throughput/total_flops"] == "FLOP"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [("kill", "Connection "), ("stop", "W&B did not finish within 3 s")])
def test_a_wandb_service_that_dies_or_hangs_is_one_warning(no_account, tmp_path, how, says):
    script = Path(__file__).with_name("wandb_fault.py")
    with open(tmp_path / "out", "w") as out:  # a file: a stuck service would keep a pipe open
        finished = subprocess.run(
            [sys.executable, str(script), str(tmp_path), how],
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(script.parents[2])},
        )
    text = (tmp_path / "out").read_text()
    for service in text.rpartition("services")[2].split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(service), signal.SIGKILL)
    assert finished.returncode == 0, text
    assert "trained to the end" in text
    assert "Traceback" not in text
    (warning,) = [line for line in text.splitlines() if line.startswith("WARNING")]
    assert says in warning
    assert warning.endswith("Training continues without it.")
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(1, 31))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    written = [record for record in inspect(folder) if record["type"] == "history"]
    assert [record["history"]["item"]["step"] for record in written] == list(range(1, 11))


@pytest.mark.slow
def test_an_account_that_cannot_be_reached_means_offline(no_account, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb, "INIT_TIMEOUT", 2.0)
    trackers = open_trackers(options(tmp_path, wandb_project="bridge-test"))
    for step in (1, 2, 3):
        trackers.log({"x": step}, step, commit=True)
    trackers.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("bridge")]
    assert warning.startswith("W&B cannot be reached (")
    assert warning.endswith("this run is kept offline.")
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    written = [record["history"]["item"] for record in inspect(folder) if record["type"] == "history"]
    assert [row["x"] for row in written] == [1, 2, 3]


# ---- several, and packages that are not there -----------------------------------------------------------------------


def test_logins_in_addresses_stay_here():
    assert without_secrets(["sqlite:///runs/a@b.db", "https://me:pass@host/x", "a@b"]) == [
        "sqlite:///runs/a@b.db",
        "https://***@host/x",
        "a@b",
    ]


@pytest.mark.parametrize(
    ("option", "package", "install"),
    [
        ("wandb_project", "wandb", "wandb"),
        ("tensorboard_dir", "tensorboard", "tensorboard"),
        ("mlflow_experiment", "mlflow", "mlflow-skinny sqlalchemy alembic"),
    ],
)
def test_a_missing_package_is_an_error_before_training(monkeypatch, option, package, install):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    check_installed(LoggerConfig(wandb_project=None))
    with pytest.raises(ConfigError) as error:
        check_installed(LoggerConfig(**{"wandb_project": None, option: "x"}))
    assert str(error.value) == (
        f"logger.{option}=x needs {package}, which is not installed; pip install {install}, or set logger.{option}=null"
    )


@pytest.mark.parametrize(("names", "install"), [({}, "absent_one"), ({"extra": "one"}, "'bridge-flops[one]'")])
def test_a_listed_tracker_without_its_package_is_refused(names, install, monkeypatch):
    foreign = type("Foreign", (Recorder,), {"package": "absent_one", **names})
    monkeypatch.setattr(sys.modules[__name__], "Foreign", foreign, raising=False)
    with pytest.raises(ConfigError) as error:
        check_installed(LoggerConfig(wandb_project=None, trackers=[{"_target_": f"{__name__}.Foreign"}]))
    assert str(error.value) == (
        f"logger.trackers[0] needs absent_one, which is not installed; pip install {install}, or take it out of the list"
    )


@pytest.mark.parametrize(
    ("wanted", "name", "tags"),
    [({}, "from environment", None), ({"wandb_exp_name": "mine", "wandb_tags": ["a"]}, "mine", ["a"])],
)
def test_wandbs_own_variables_win_over_defaults_alone(no_account, tmp_path, monkeypatch, wanted, name, tags):
    monkeypatch.setenv("WANDB_NAME", "from environment")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trackers = open_trackers(options(tmp_path, wandb_project="p", **wanted), name="recipe")
    (tracker,) = [one for one in trackers._trackers if hasattr(one, "_arguments")]
    trackers.close()
    assert (tracker._arguments["name"], tracker._arguments["tags"]) == (name, tags)


def test_a_run_that_somebody_has_opened_is_joined_and_goes_on(no_account, tmp_path, monkeypatch):
    import wandb as package

    monkeypatch.setenv("WANDB_MODE", "offline")
    with package.init(project="notebook", dir=tmp_path, settings=package.Settings(console="off", silent=True)) as run:
        trackers = open_trackers(options(tmp_path, wandb_project="ours"))
        for step in (10, 20, 30):
            trackers.log({"throughput/mfu": step / 100}, step, commit=True)
        trackers.summary({"device": "X"})
        trackers.close()
        assert package.run is run
        run.log({"theirs": 1})
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    items = [record["history"]["item"] for record in inspect(folder) if record["type"] == "history"]
    assert [(row["bridge/step"], row["bridge/throughput/mfu"]) for row in items] == [(10, 0.1), (20, 0.2), (30, 0.3)]
    assert items[-1]["theirs"] == 1


def test_the_log_of_wandb_on_a_full_disk_prints_nothing(capsys):
    pytest.importorskip("wandb")
    wandb._quiet_log()
    log = logging.getLogger("wandb")
    log.addHandler(handler := logging.FileHandler("/dev/full"))
    log.critical("No space is left for this line")
    log.removeHandler(handler)
    assert capsys.readouterr() == ("", "")
