"""Restricts the pickles in a checkpoint to the names that torch's own checkpoints need, so that loading executes nothing else.

torch unpickles ``.metadata`` and the small objects among the tensors without restrictions: anyone who can write into the folder
could execute code.  So ``.metadata`` is first read here, by an unpickler that accepts only these names, and everything else is
loaded with ``weights_only``.
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
    """The pickle names something other than data."""


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not is_type and (module, name) not in _NAMES:
            raise _Refused(f"names {module}.{name}")
        return super().find_class(module, name)


def problem_of(path: Path) -> str | None:
    """What is wrong with ``.metadata`` in a checkpoint's folder; None if it holds only data. Nothing in it is executed."""
    try:
        with open(path / ".metadata", "rb") as file:
            _DataOnly(file).load()
    except OSError as error:
        return f".metadata: {error.strerror}"
    except _Refused as error:
        return f".metadata {error}: it holds more than data and is not loaded"
    except Exception as error:  # damaged bytes may raise anything
        return f".metadata cannot be read: {type(error).__name__}"
    return None


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Inside this context ``torch.load`` loads only tensors and plain values, whatever arguments it gets."""
    before = {name: os.environ.pop(name) for name in _SWITCHES if name in os.environ}
    os.environ[_SWITCHES[0]] = "1"
    try:
        yield
    finally:
        del os.environ[_SWITCHES[0]]
        os.environ.update(before)
