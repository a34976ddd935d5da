"""The folder of what can be computed again, and files that are written whole."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from bridge.config.caches import cache_folder, replace_json


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        (None, "/xdg", "/xdg/bridge"),
        ("", "/xdg", "/xdg/bridge"),
        (None, None, "/home/me/.cache/bridge"),
        (None, "", "/home/me/.cache/bridge"),
        ("~/mine", None, "/home/me/mine"),
        (None, "~/xdg", "/home/me/xdg/bridge"),
    ],
)
def test_where_the_folder_is(own, xdg, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("BRIDGE_CACHE_DIR", own), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_file_holds_what_was_written_last(tmp_path):
    path = tmp_path / "peaks.json"
    for content in ({"a": [1, 2.5, None]}, [], {"ä": True}):
        replace_json(path, content)
        assert json.loads(path.read_text()) == content
    replace_json(path, {"a": [1, 2]})
    assert path.read_text() == '{"a":[1,2]}'
    assert list(tmp_path.iterdir()) == [path]


class Interrupted(dict):
    def __bool__(self):
        return True

    def items(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("content", "error"), [({"a": object()}, TypeError), ({"a": Interrupted(b=1)}, KeyboardInterrupt)], ids=["type", "interrupt"]
)
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, content, error):
    path = tmp_path / "peaks.json"
    replace_json(path, {"old": 1})
    with pytest.raises(error):
        replace_json(path, content)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        replace_json(tmp_path / "nowhere" / "peaks.json", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_json(tmp_path / "folder", {})
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_who_reads_meanwhile_reads_one_of_the_two(tmp_path):
    """Two writers at once: whatever is there is one writer's, from the first byte to the last."""
    path, size = tmp_path / "peaks.json", 5000
    replace_json(path, [0] * size)
    done = threading.Event()

    def write(value):
        while not done.is_set():
            replace_json(path, [value] * size)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        seen = {tuple(json.loads(path.read_text())) for _ in range(100)}
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert seen <= {(value,) * size for value in (0, 1, 2)}
    assert list(tmp_path.iterdir()) == [path]
