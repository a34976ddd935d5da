"""W&B is real and offline, and read back; a service that dies or hangs is one warning."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.flops import ConfigError
from bridge.metrics.trackers import attached, default_mode, open_trackers, wandb
from bridge.metrics.trackers.wandb import among_others
from tests.metrics.trackers.test_opening import options


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


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
            env={**os.environ, "PYTHONPATH": str(script.parents[3])},
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


@pytest.mark.parametrize(("said", "mode"), [("run", "online"), ("disabled", "disabled"), ("offline", "offline"), ("", "offline")])
def test_wandbs_own_words_for_its_modes(no_account, monkeypatch, said, mode):
    monkeypatch.setenv("WANDB_MODE", said)
    assert default_mode() == mode


def test_a_netrc_that_cannot_be_read_is_no_account(no_account, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai nonsense\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert not wandb.has_account()
    netrc.write_text("machine elsewhere.org login user password key\n")
    assert not wandb.has_account()


def test_a_run_of_somebody_elses_has_our_keys_under_a_prefix_and_one_convention(request):
    import wandb as package

    request.addfinalizer(package.finish)  # a disabled run does not end with its block
    assert attached(None) == []
    with package.init(mode="disabled") as run:
        (mine,) = attached(package)  # a loop hands out the module, or the run
        assert mine._run is attached(run)[0]._run is run
        mine.summary({"convention": "exact", "hf_token": "t"})
        mine.summary({"convention": "exact", "device": "X"})
        mine.summary({"done": True})
        assert dict(run.summary) == {
            "bridge/convention": "exact",
            "bridge/hf_token": "***",
            "bridge/device": "X",
            "bridge/done": True,
        }
        with pytest.raises(ConfigError) as error:
            mine.summary({"convention": "palm"})
    assert str(error.value) == (
        "this W&B run has numbers of convention 'exact', and those of 'palm' cannot have the same keys; start another run"
    )
    assert among_others({"throughput/mfu": 0.5}, 7) == {"bridge/step": 7, "bridge/throughput/mfu": 0.5}


def test_folders_are_said_as_they_are_shorter_to_type(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert wandb._nearby(f"{tmp_path}/wandb/run") == "wandb/run"
    assert wandb._nearby("/elsewhere/run") == "/elsewhere/run"
