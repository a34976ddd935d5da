"""A checkpoint is data: its pickles may name what torch's own checkpoints hold, and nothing that does something.

``.metadata`` is a pickle that torch loads as it is, and so are the small objects among the tensors: whoever can write into
the folder could have anything run.  So ``.metadata`` is read here first, by an unpickler that knows these few names, and
everything else is loaded as weights only.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_METADATA = "torch.distributed.checkpoint.metadata"
_NAMES = {
    *(
        (_METADATA, name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(("pathlib._local", name) for name in ("PosixPath", "PurePosixPath")),  # where Python 3.13 has them
}


_SWITCHES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


class _Refused(Exception):
    """A name that is none of data."""


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not is_type and (module, name) not in _NAMES:
            raise _Refused(f"names {module}.{name}")
        return super().find_class(module, name)


def problem_of(path: Path) -> str | None:
    """What is wrong with ``.metadata`` in a checkpoint's folder; None if it is data alone. Nothing in it is run."""
    try:
        with open(path / ".metadata", "rb") as file:
            _DataOnly(file).load()
    except OSError as error:
        return f".metadata: {error.strerror}"
    except _Refused as error:
        return f".metadata {error}: it holds more than data and is not loaded"
    except Exception as error:  # torn bytes raise what they like
        return f".metadata cannot be read: {type(error).__name__}"
    return None


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Inside, ``torch.load`` loads tensors and plain values, whatever others pass to it."""
    before = {name: os.environ.pop(name) for name in _SWITCHES if name in os.environ}
    os.environ[_SWITCHES[0]] = "1"
    try:
        yield
    finally:
        del os.environ[_SWITCHES[0]]
        os.environ.update(before)
