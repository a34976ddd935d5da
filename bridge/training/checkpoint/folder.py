"""Checkpoints on disk: finds the newest complete one, verifies and publishes them.  It needs neither torch nor ranks.

::

    <folder>/
        latest                  name of the newest complete checkpoint
        step_0000060/
            __0_0.distcp ...    weights and optimizer, one file per rank, in megatron-core's sharding
            .metadata, common.pt, metadata.json
            random_0.pt ...     random number state, one file per rank
            state.json          counters, callbacks, data, layout, and the size and CRC-32 of every other file

A checkpoint is written into a hidden folder, flushed to disk and renamed; only then ``latest`` names it.  A failure in between
leaves older checkpoints unchanged.  Before loading, every file is compared with ``state.json``; if one differs, the checkpoint
before it is used, with a message.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOAD, BASE = "checkpoint.load", "checkpoint.pretrained_checkpoint"
LATEST = "latest"
STATE = "state.json"
PREFIX = "step_"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: Mapping[str, Any]
    """The argument ``state`` of :func:`bridge.training.checkpoint.store.save`."""
    layout: Mapping[str, int]
    """Sizes of the parallel dimensions it was saved with."""
    files: Mapping[str, list[int]] = field(default_factory=dict)
    """Size and CRC-32 of each file beside the state."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def fingerprint(self) -> str:
        """Equal if and only if the files have equal content."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()[:16]

    @property
    def base(self) -> Base | None:
        """The checkpoint with the weights that are not in this one."""
        saved = self.state.get("base")
        return None if saved is None else Base(**saved)


@dataclass(frozen=True)
class Base:
    """The checkpoint that holds the frozen weights of a fine-tuning."""

    path: str
    fingerprint: str
    """:attr:`Checkpoint.fingerprint`."""


def make_empty(path: Path) -> None:
    """Create an empty folder, replacing any old one."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def saved_in(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if path.is_dir()), key=lambda p: p.name, reverse=True)


def candidates_in(folder: Path, option: str) -> tuple[list[Path], list[str]]:
    """The checkpoints to try in order (the one that ``latest`` names, then older ones), and messages."""
    if (folder / STATE).exists():
        return [folder], []
    saved = saved_in(folder)
    try:
        name = (folder / LATEST).read_text().strip()
    except OSError:
        note = f"{option}={str(folder)!r} has no file `{LATEST}`; the newest checkpoint is used"
        return saved, [note] if saved else []
    except UnicodeDecodeError:
        name = "?"
    older = [path for path in saved if path.name <= name]
    if older and older[0].name == name:
        return older, []
    note = f"{option}={str(folder)!r}: `{LATEST}` names {name!r}, which is not there; the newest checkpoint is used"
    # The pointer exists but no checkpoint does: an empty list would look like a new run.
    return (saved, [note]) if saved else ([folder / (name or "?")], [])


def read_state(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The verified content of ``state.json`` and None, or None and the problem."""
    try:
        sealed = json.loads((path / STATE).read_text())
        content = sealed["checkpoint"]
        if zlib.crc32(json.dumps(content, indent=1).encode()) != sealed["crc32"]:
            return None, f"{STATE} was changed"
        if content["format"] != FORMAT:
            return None, f"format {content['format']}, expected {FORMAT}"
        return content, None
    except OSError as error:
        return None, f"{STATE}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return None, f"{STATE} cannot be read"


def problem_in(path: Path, files: Mapping[str, list[int]], rank: int = 0, world_size: int = 1) -> str | None:
    """The first problem in a rank's share of the files; None if there is none."""
    for name in sorted(files)[rank::world_size]:
        try:
            size = (path / name).stat().st_size
            if size != files[name][0]:
                return f"{name} has {size} bytes instead of {files[name][0]}"
            if _checksum(path / name) != files[name]:
                return f"{name} has changed since it was saved"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def checksums(path: Path, rank: int = 0, world_size: int = 1) -> dict[str, list[int]]:
    """Size and CRC-32 of the files that a rank wrote; files without a rank's number belong to the first rank."""
    owners = {f"__{rank}_": rank for rank in range(world_size)}
    mine = {}
    for entry in sorted(path.iterdir()):
        prefix = entry.name[: entry.name.find("_", 2) + 1] if entry.name.startswith("__") else ""
        owner = owners.get(prefix, 0)
        if entry.name.startswith("random_"):
            owner = int(entry.stem.removeprefix("random_"))
        if owner == rank:
            mine[entry.name] = _checksum(entry)
    return mine


def _checksum(path: Path) -> list[int]:
    crc = size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]


def publish(partial_path: Path, final: Path, content: Mapping[str, Any], keep: int | None) -> None:
    """Write the state file and rename the checkpoint, on the first rank; each step is on disk before the next one begins."""
    text = json.dumps(content, indent=1)
    with open(partial_path / STATE, "w") as file:
        json.dump({"crc32": zlib.crc32(text.encode()), "checkpoint": content}, file, indent=1)
        flush(file)
    with open(partial_path / "metadata.json", "rb") as file:  # written by megatron-core
        os.fsync(file.fileno())
    _flush_folder(partial_path)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # a run that starts anew in an old folder
        final.rename(replaced)
    partial_path.rename(final)
    _flush_folder(final.parent)
    _write_latest(final)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep is not None:
        for old in saved_in(final.parent)[keep:]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)


def _write_latest(final: Path) -> None:
    pointer = final.parent / f".{LATEST}.partial"
    with open(pointer, "w") as file:
        file.write(final.name + "\n")
        flush(file)
    pointer.replace(final.parent / LATEST)
    _flush_folder(final.parent)


def flush(file: Any) -> None:
    """Flush a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Flush a folder to disk, and with it the renames in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
