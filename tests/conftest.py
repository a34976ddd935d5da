"""Settings of the whole suite, and which tests `make test` leaves to `make test-all`."""

import os
import tempfile
from fnmatch import fnmatchcase

import pytest
from hypothesis import settings
from unmeasured import told_peak

# Machines that run the suite are shared and slow at times: a slow example is not a failure.
settings.register_profile("bridge", deadline=None)
settings.load_profile("bridge")


def left_to_test_all(item: pytest.Item) -> bool:
    """Long tests beside shorter ones of the same thing, and further draws of what is drawn at random, are marked `all`.

    `but` names the parameters that run always, as patterns of their ids. A file or a test that the command line names runs whole.
    """
    mark = item.get_closest_marker("all")
    return mark is not None and not any(fnmatchcase(item.callspec.id, pattern) for pattern in mark.kwargs.get("but", ()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run what `make test` leaves to `make test-all`")


def pytest_configure(config: pytest.Config) -> None:
    """Peaks and traces of a test are no user's: every process below this one keeps them in a folder that goes with it.

    Nor is the width that a parallel run gives its workers: what they print goes to no terminal.
    """
    os.environ.pop("COLUMNS", None)
    if "BRIDGE_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="bridge-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["BRIDGE_CACHE_DIR"] = folder.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files that start processes come first: at the end there are short ones to share out.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if config.getoption("--all") or config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    left = {item for item in items if left_to_test_all(item)}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a CPU is not measured, which takes time and depends on the load: it is 1e15 FLOP/s."""
    monkeypatch.setattr("bridge.metrics.peak.measure_matmul", told_peak)
