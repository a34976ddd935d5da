"""Stores tables of packed files in a small file beside the data, so that one process computes them and all others read them.

The sidecar is JSON with a checksum and is replaced atomically; its writer holds an advisory lock, which the system releases when
the writer dies.  If the folder of the data is read-only, a cache folder is used (``BRIDGE_CACHE_DIR``, else
``$XDG_CACHE_HOME/bridge`` or ``~/.cache/bridge``); if that is read-only too, every process computes its own tables.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bridge.config.caches import cache_folder, replace_json
from bridge.data.packed.files import Shard

VERSION = 1
#: The number of tables kept per file: one for each global batch size and sequence length in use.
CAPACITY = 16
#: A sidecar has some kilobytes; a larger file is not one.
LARGEST_BYTES = 64 << 20

_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}


def candidates(dataset_file: str, shards: Sequence[Shard]) -> list[Path]:
    """The possible paths of the sidecar of a packed file, the best one first."""
    base = os.path.dirname(os.path.abspath(shards[0].path))
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(dataset_file.rstrip("/")))
    where = zlib.crc32(os.path.abspath(dataset_file).encode("utf-8", "surrogateescape"))
    return [Path(base, f".{name}.sequence-stats.json"), cache_folder() / f"{name}.{where:08x}.sequence-stats.json"]


def load(path: Path, shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """The tables of a file in its current state; none if the sidecar is missing, damaged or of another state of the file."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return []
        content = json.loads(path.read_bytes())
        checksum = content.pop("crc32")
        if checksum != _checksum(content) or content["version"] != VERSION or content["shards"] != _names(shards):
            return []
        tables: list[dict[str, Any]] = content["tables"]
        return tables
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def store(path: Path, shards: Sequence[Shard], tables: Sequence[dict[str, Any]]) -> None:
    """Replace the sidecar; it keeps the last ``CAPACITY`` tables.

    Raises:
        OSError: it cannot be written.
    """
    content: dict[str, Any] = {"version": VERSION, "shards": _names(shards), "tables": list(tables[-CAPACITY:])}
    content["crc32"] = _checksum(content)
    replace_json(path, content)


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Try to become the one process that writes the sidecar at ``path``: yields whether this worked, without waiting.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    mine = True
    try:
        lock.acquire()
    except Timeout:
        mine = False
    except OSError as error:
        # On a file system without locks several may compute the same table, and the last one writes it.
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield mine
    finally:
        if mine:
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def _names(shards: Sequence[Shard]) -> list[list[Any]]:
    """The shards as the sidecar stores them, relative to the first one's folder, so that the folder may be moved."""
    base = os.path.dirname(shards[0].path)
    return [[os.path.relpath(path, base or "."), size, mtime] for path, size, mtime in shards]


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
