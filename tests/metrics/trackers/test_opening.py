"""From the options of ``logger`` to trackers: what is asked for is opened, and what cannot be is said."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bridge.config.instantiate import find_target
from bridge.config.schema import LoggerConfig
from bridge.flops import ConfigError
from bridge.metrics.trackers.opening import KINDS, check_installed, is_installed, open_trackers

ROOT = Path(__file__).parents[3]
TRACKERS = "bridge.metrics.trackers"


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
    foreign = type("Foreign", (), {"package": "absent_one", **names})
    monkeypatch.setattr(sys.modules[__name__], "Foreign", foreign, raising=False)
    with pytest.raises(ConfigError) as error:
        check_installed(LoggerConfig(wandb_project=None, trackers=[{"_target_": f"{__name__}.Foreign"}]))
    assert str(error.value) == (
        f"logger.trackers[0] needs absent_one, which is not installed; pip install {install}, or take it out of the list"
    )


def test_what_is_not_installed_or_not_possible_is_said_before_training(monkeypatch):
    wanted = LoggerConfig(trackers=[{"_target_": f"{TRACKERS}.prometheus.PrometheusTracker", "port": 1}])
    monkeypatch.setattr(f"{TRACKERS}.opening.is_installed", lambda package: package != "prometheus_client")
    wanted.wandb_project = None
    with pytest.raises(ConfigError, match=r"logger\.trackers\[0\] needs prometheus_client.*bridge-flops\[prometheus\]"):
        check_installed(wanted)
    wanted.trackers = [{"_target_": f"{TRACKERS}.prometheus.PrometheusTracker"}]
    with pytest.raises(ConfigError, match="port .*or textfile_directory"):
        open_trackers(SimpleNamespace(trackers=wanted.trackers, dir="."))


@pytest.mark.parametrize("module", ["otlp", "prometheus", "swanlab", "trackio"])
def test_the_recipe_that_a_tracker_shows_is_one_that_it_takes(module):
    tracker = importlib.import_module(f"{TRACKERS}.{module}")
    shown = tracker.__doc__.partition("In a recipe::")[2].splitlines()
    recipe = yaml.safe_load("\n".join(line for line in shown if line.startswith("    ")))
    ((number, spec),) = enumerate(recipe["logger"]["trackers"])
    target, arguments = find_target(spec, f"logger.trackers[{number}]")
    assert (target.__module__, arguments.keys() & {"start"}) == (tracker.__name__, set())
    inspect.signature(target).bind(start=None, **arguments)
    extras = dict(re.findall(r'^    "(\w+)": \["([\w-]+)"', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert extras[target.extra].replace("-", "_").startswith(target.package.partition(".")[0])


def test_each_kind_is_asked_for_by_an_option_of_its_own():
    asked = [kind.option for kind in KINDS]
    assert sorted(asked) == ["metrics_file", "mlflow_experiment", "tensorboard_dir", "wandb_project"]
    assert set(asked) <= {field.name for field in fields(LoggerConfig)}
    assert [kind.option for kind in KINDS if not kind.package] == ["metrics_file"]


class Told:
    """A tracker of somebody else's, that keeps what it was told, or cannot start."""

    def __init__(self, start, note="", refuses=""):
        if refuses:
            raise OSError(refuses)
        self.start, self.note = start, note

    def log(self, metrics, step):
        pass

    def close(self):
        pass


def test_a_listed_tracker_is_told_of_the_run_and_one_that_cannot_start_is_one_warning(caplog):
    target = f"{__name__}.Told"
    listed = [{"_target_": target, "refuses": "no such host\nat all"}, {"_target_": target, "note": "mine"}]
    wanted = SimpleNamespace(trackers=listed)
    trackers = open_trackers(wanted, name="tiny", step=7, run_id="abc", config={"a": 1})
    (told,) = trackers._trackers
    start = told.start
    assert (told.note, start.name, start.step, start.run_id, start.config) == ("mine", "tiny", 7, "abc", {"a": 1})
    assert start.options is wanted
    assert trackers.run_id == "abc"
    assert [record.getMessage() for record in caplog.records] == [
        "logger.trackers[0] cannot start: no such host. Training continues without it."
    ]


def test_a_new_run_has_a_name_of_its_own_and_one_that_nobody_asked_for_has_none(tmp_path):
    assert open_trackers(SimpleNamespace(metrics_file=None)).run_id is None
    new = [open_trackers(options(tmp_path, metrics_file=str(tmp_path / name))) for name in "ab"]
    assert [len(bytes.fromhex(one.run_id)) for one in new] == [4, 4]
    assert new[0].run_id != new[1].run_id
    for one in new:
        one.close()


def test_what_cannot_start_is_said_without_its_login(tmp_path, caplog):
    (tmp_path / "file").touch()
    address = f"{tmp_path}/file/x://me:secret@host"
    listed = [{"_target_": f"{__name__}.Told", "refuses": "x://me:secret@host refused"}]
    assert not open_trackers(options(tmp_path, metrics_file=address, trackers=listed))
    assert [record.getMessage() for record in caplog.records] == [
        f"logger.metrics_file={tmp_path}/file/x://***@host cannot start: [Errno 20] Not a directory: '{tmp_path}/file/x:'. "
        "Training continues without it; logger.metrics_file=null silences this.",
        "logger.trackers[0] cannot start: x://***@host refused. Training continues without it.",
    ]


def test_whether_a_package_is_there_is_asked_without_importing_it(monkeypatch):
    assert is_installed("antigravity")  # would open a browser
    assert "antigravity" not in sys.modules
    assert not is_installed("absent_one")
    assert not is_installed("absent_one.child")
    monkeypatch.setitem(sys.modules, "json", None)
    assert not is_installed("json")
