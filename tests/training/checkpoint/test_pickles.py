"""A checkpoint is data: what its pickles would run is refused before it runs."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("megatron.core")

import torch.distributed as dist
from torch.distributed import checkpoint as torch_checkpoint

from bridge.training.checkpoint.pickles import problem_of, weights_only
from bridge.training.checkpoint.store import find
from bridge.training.errors import RunError
from bridge.training.state import Groups


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """A job of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that torch wrote, sealed as ours are."""
    path = tmp_path / "step_0000003"
    torch_checkpoint.save({"weight": torch.ones(3, dtype=torch.bfloat16), "note": {"a": 1}}, checkpoint_id=path, no_dist=True)
    seal(path)
    return path


def seal(path: Path) -> None:
    files = {}
    for file in path.iterdir():
        data = file.read_bytes()
        files[file.name] = [len(data), zlib.crc32(data)]
    files.pop("state.json", None)
    content = {"format": 1, "step": 3, "layout": {}, "state": {}, "files": files}
    text = json.dumps(content, indent=1)
    (path / "state.json").write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "checkpoint": content}))


def test_a_real_checkpoint_is_data(folder: Path) -> None:
    assert problem_of(folder) is None
    found, notes = find(folder.parent, Groups())
    assert found is not None
    assert found.path == folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_pickle_would_run_is_refused(folder: Path, tmp_path: Path, protocol: int) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "planted"), protocol))
    seal(folder)
    with pytest.raises(RunError, match=r"\.metadata names (posix|nt|os)\.system: it holds more than data"):
        find(folder, Groups())
    # Also where the list of files leaves it out.
    (folder / ".metadata").rename(tmp_path / "aside")
    seal(folder)
    (tmp_path / "aside").rename(folder / ".metadata")
    with pytest.raises(RunError, match="more than data"):
        find(folder, Groups())
    assert not (tmp_path / "planted").exists()


def test_dotted_names_lead_nowhere(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x09os.system\x93.")
    assert "more than data" in str(problem_of(folder))
    (folder / ".metadata").write_bytes(b"torn")
    assert "cannot be read" in str(problem_of(folder))


def test_objects_among_the_tensors_are_loaded_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(Planted(tmp_path / "planted"), tmp_path / "object.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "object.pt", weights_only=False)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not (tmp_path / "planted").exists()
