"""Checkpoints on the disk, without torch and without ranks: whole or not there, and the newest whole one first."""

import json
import subprocess
import sys

import pytest

from bridge.training.checkpoint.folder import (
    FORMAT,
    candidates_in,
    checksums,
    make_empty,
    problem_in,
    publish,
    read_state,
    saved_in,
)

FILES = {
    "__0_0.distcp": b"zero",
    "__1_0.distcp": b"one",
    "common.pt": b"common",
    "metadata.json": b"{}",
    "random_0.pt": b"r0",
    "random_1.pt": b"r1",
}


def write(folder, step, keep=None):
    final, partial = folder / f"step_{step:07d}", folder / f".step_{step:07d}.partial"
    make_empty(partial)
    for name, content in FILES.items():
        (partial / name).write_bytes(content)
    files = {name: entry for rank in range(2) for name, entry in checksums(partial, rank, 2).items()}
    content = {"format": FORMAT, "step": step, "layout": {}, "state": {"step": step}, "files": files}
    publish(partial, final, content, keep)
    return final


def test_a_checkpoint_is_read_as_it_was_published(tmp_path):
    path = write(tmp_path, 6)
    content, problem = read_state(path)
    assert problem is None
    assert (content["step"], content["state"], sorted(content["files"])) == (6, {"step": 6}, sorted(FILES))
    assert content["files"]["__1_0.distcp"] == [3, 2053932785]  # bytes, and zlib.crc32(b"one")
    assert [problem_in(path, content["files"], rank, 2) for rank in range(2)] == [None, None]
    assert (tmp_path / "latest").read_text() == "step_0000006\n"
    assert candidates_in(tmp_path, "checkpoint.load") == ([path], [])
    assert candidates_in(path, "checkpoint.load") == ([path], [])
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_each_rank_sums_its_own_files_and_the_first_the_rest(tmp_path):
    path = write(tmp_path, 1)
    assert sorted(checksums(path, 1, 2)) == ["__1_0.distcp", "random_1.pt"]
    assert sorted(checksums(path, 0, 2)) == sorted((FILES.keys() | {"state.json"}) - {"__1_0.distcp", "random_1.pt"})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("__0_0.distcp", b"zer", "__0_0.distcp has 3 bytes instead of 4"),
        ("__1_0.distcp", b"onE", "__1_0.distcp has changed since it was saved"),
        ("common.pt", None, "common.pt: No such file or directory"),
    ],
)
def test_what_is_damaged_is_named_by_the_rank_that_looks(tmp_path, name, content, problem):
    path = write(tmp_path, 1)
    (path / name).unlink() if content is None else (path / name).write_bytes(content)
    files = read_state(path)[0]["files"]
    assert problem_in(path, files) == problem
    assert [problem_in(path, files, rank, 2) for rank in range(2)].count(problem) == 1


def test_a_state_is_sealed(tmp_path):
    path = write(tmp_path, 1)
    sealed = json.loads((path / "state.json").read_text())
    sealed["checkpoint"]["step"] = 2
    (path / "state.json").write_text(json.dumps(sealed))
    assert read_state(path) == (None, "state.json was changed")
    (path / "state.json").write_text("{")
    assert read_state(path) == (None, "state.json cannot be read")
    (path / "state.json").unlink()
    assert read_state(path) == (None, "state.json: No such file or directory")


def test_the_newest_is_tried_first_and_a_lost_name_is_said(tmp_path):
    paths = [write(tmp_path, step) for step in (1, 2, 10)]
    assert saved_in(tmp_path) == paths[::-1]
    (tmp_path / "latest").write_text("step_0000002\n")
    assert candidates_in(tmp_path, "checkpoint.load") == ([paths[1], paths[0]], [])
    (tmp_path / "latest").write_text("step_0000007\n")
    assert candidates_in(tmp_path, "checkpoint.load")[0] == paths[::-1]
    assert "names 'step_0000007', which is not there" in candidates_in(tmp_path, "checkpoint.load")[1][0]
    (tmp_path / "latest").unlink()
    assert "has no file `latest`" in candidates_in(tmp_path, "checkpoint.load")[1][0]
    assert candidates_in(tmp_path / "new", "checkpoint.load") == ([], [])


def test_old_ones_go_and_one_step_may_be_saved_again(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=2)
    assert [path.name for path in saved_in(tmp_path)] == ["step_0000003", "step_0000002"]
    (tmp_path / "step_0000002" / "left").touch()
    again = write(tmp_path, 2)
    assert not (again / "left").exists()
    assert (tmp_path / "latest").read_text() == "step_0000002\n"


def test_torch_is_not_needed():
    code = "import sys, bridge.training.checkpoint.folder; print({'torch', 'megatron'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
