"""Finds the packed file of a configuration and its shards, and notices changes.

Policy: a file is searched once per configuration (by its path, or by dataset_root and pack size).  Later calls cost one stat per
shard (and per folder of shards), and nothing else.  If there are more than ``MANY`` of them, or a glob matches nothing yet, they
are checked again only every ``PATIENCE_S`` seconds.
"""

from __future__ import annotations

import functools
import glob
import importlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridge.flops.reading import get, model_of
from bridge.flops.shapes import ConfigError

if TYPE_CHECKING:
    from bridge.data.packed.rows import Rows

logger = logging.getLogger(__name__)

#: Endings of packed files, and the module that reads each (imported when needed).
READERS = {
    ".parquet": "bridge.data.packed.parquet",
    ".pq": "bridge.data.packed.parquet",
    ".npy": "bridge.data.packed.npy",
    ".idx": "bridge.data.packed.index",
    ".jsonl": "bridge.data.packed.jsonl",
}

#: Up to this many shards and folders are checked on every call.
MANY = 32
#: Seconds between two checks of what is not checked on every call.
PATIENCE_S = 10.0
#: Two changes within a tick of a file system's clock may have the same time.
TICK_NS = 20_000_000
#: The number of configurations whose files are remembered.
CAPACITY = 32

OPTION = "dataset.packed_sequence_specs.packed_train_data_path"


class Shard(NamedTuple):
    """Identifies the state of a file; size and modification time are None if it is missing."""

    path: str
    size: int | None
    mtime_ns: int | None


def identify(path: str) -> Shard:
    """The current state of a file, from one stat."""
    try:
        stat = os.stat(path)
    except OSError:
        return Shard(path, None, None)
    return Shard(path, stat.st_size, stat.st_mtime_ns)


def identify_all(paths: list[str]) -> tuple[Shard, ...]:
    """The current states of files; waits if a file is so new that its next change might get the same time."""
    shards = tuple(map(identify, paths))
    now = time.time_ns()
    if any(shard.mtime_ns is not None and 0 <= now - shard.mtime_ns < TICK_NS for shard in shards):
        time.sleep(TICK_NS / 1e9)
        return tuple(map(identify, paths))
    return shards


def shards_of(dataset_file: str) -> list[str]:
    """The files behind a path, in the order of their names.

    Args:
        dataset_file: a file; the ``.bin`` or ``.idx`` of an indexed dataset, or its name without an ending; a folder, whose
            files with one of the known endings are used; or a glob.

    Raises:
        ConfigError: there are none, or one has an unknown ending.
    """
    if os.path.isdir(dataset_file):
        folder = glob.escape(dataset_file)
        by_ending = (sorted(glob.glob(os.path.join(folder, f"*{ending}"))) for ending in READERS)
        found = next(filter(None, by_ending), [])
    elif os.path.exists(dataset_file) or not glob.has_magic(dataset_file):
        found = [dataset_file]
    else:
        found = sorted(glob.glob(dataset_file))
    if not found:
        raise ConfigError(f"packed file {dataset_file} matches no file ending in {', '.join(READERS)}; check {OPTION}")
    found = list(dict.fromkeys(map(_readable, found)))
    for path in found:
        if not os.path.isfile(path):
            raise ConfigError(f"packed file {path} does not exist; check {OPTION}")
        if not path.endswith(tuple(READERS)):
            raise ConfigError(f"packed file {path} must end in {', '.join(READERS)} or .bin; check {OPTION}")
    return found


def _readable(path: str) -> str:
    """The index of an indexed dataset; every other path as it is."""
    if path.endswith(".bin"):
        return path.removesuffix(".bin") + ".idx"
    return f"{path}.idx" if not os.path.exists(path) and os.path.exists(f"{path}.idx") else path


def read_rows(path: str) -> Iterator[Rows]:
    """The rows of one shard, in pieces.

    Raises:
        ConfigError: it cannot be read; the message names the file and the reason.
    """
    ending = next(ending for ending in READERS if path.endswith(ending))
    try:
        yield from importlib.import_module(READERS[ending]).read(path)
    except ImportError as error:
        raise ConfigError(f"packed file {path} cannot be read without {error.name}: install it") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise ConfigError(f"packed file {path} cannot be read: {error or type(error).__name__}. Write it again") from error


# ---- the file of a configuration ---------------------------------------------------------------------


class Request(NamedTuple):
    """What a configuration says about its packed training file: its path, or root folder and pack size."""

    named: str | None
    dataset_root: str | None
    size: int | None

    @classmethod
    def of(cls, cfg: Any) -> Request | None:
        """Read ``cfg.dataset`` (in our configurations ``cfg.data``); None if it has no ``packed_sequence_specs``.

        Since July 2026 Megatron-Bridge calls them ``offline_packing_specs``, with a separate switch.
        """
        dataset = get(cfg, "dataset") or get(cfg, "data")
        specs = get(dataset, "packed_sequence_specs")
        if specs is None and get(dataset, "enable_offline_packing"):
            specs = get(dataset, "offline_packing_specs")
        if specs is None:
            return None
        named = get(specs, "packed_train_data_path")
        if named is not None:
            return cls(str(named), None, None)
        root = get(dataset, "dataset_root") or get(dataset, "hf_output_root")
        size = get(specs, "packed_sequence_size") or get(model_of(cfg), "seq_length")
        return None if root is None or not size or size < 0 else cls(None, str(root), size)


@dataclass
class Located:
    """A packed file, or its absence, and what is checked to notice a change.

    Attributes:
        dataset_file: its path; empty if there is none.
        shards: its files, whose states identify its content.
        folders: the folders whose states change when a file is added or removed.
        lasting: whether the shards and folders show every change.
    """

    dataset_file: str
    shards: tuple[Shard, ...] = ()
    folders: tuple[Shard, ...] = ()
    lasting: bool = True
    looked: float = field(default_factory=time.monotonic)

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        many = len(self.shards) + len(self.folders) > MANY
        if (many or not self.lasting) and time.monotonic() - self.looked < PATIENCE_S:
            return True
        self.looked = time.monotonic()
        return self.lasting and all(identify(known.path) == known for known in (*self.shards, *self.folders))


class Locator:
    """Finds the packed files of configurations once and then checks them for changes; see the policy above."""

    def __init__(self) -> None:
        self._known: OrderedDict[Request, Located] = OrderedDict()

    def __call__(self, cfg: Any) -> Located | None:
        """The packed training file of a configuration; None if none is configured or it does not exist (yet)."""
        request = Request.of(cfg)
        if request is None:
            return None
        known = self._known.get(request)
        if known is None or not known.holds():
            known = self._known[request] = locate(request)
            while len(self._known) > CAPACITY:
                self._known.popitem(last=False)
        return known if known.dataset_file else None


def locate(request: Request) -> Located:
    """Search for the file of a request."""
    if request.named is not None:
        return _locate_named(request.named)
    packed = Path(request.dataset_root or "", "packed")
    # A new file or folder changes the time of its parent folder.  Folders are identified first, here and below, so that a file
    # that appears during the search counts as a change.
    folders = identify_all([str(packed.parent), str(packed), *map(str, packed.glob("*"))])
    for ending in (".idx.parquet", ".npy"):
        matches = sorted(map(str, packed.glob(f"*/training_{request.size}{ending}")))
        if matches:
            return Located(matches[0], identify_all(matches[:1]))
    return Located("", folders=folders)


@functools.lru_cache(maxsize=CAPACITY)
def _warn_once(path: str) -> None:
    logger.warning("%s=%s does not exist: every row counts with model.seq_length tokens instead", OPTION, path)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # in a folder without permission
        return False


def _locate_named(path: str) -> Located:
    is_pattern = glob.has_magic(path) and not os.path.exists(path)
    absent = identify_all([path, f"{path}.idx"])
    if not (glob.glob(path) if is_pattern else _exists(path) or _exists(f"{path}.idx")):
        _warn_once(path)
        return Located("", folders=absent, lasting=not is_pattern)
    if not is_pattern and not os.path.isdir(path):
        return Located(path, identify_all([_readable(path)]))
    folders = identify_all(sorted({os.path.dirname(shard) or "." for shard in shards_of(path)}))
    return Located(path, identify_all(shards_of(path)), folders)
