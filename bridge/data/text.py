"""Reads text from files on disk or, by default, from the source files of the running Python, which always exist.

Documents are never mixed in attention.  A file is one document unless ``data.document_separator`` splits it; the
standard library's sources are split at two blank lines, that is, at their top-level definitions, which gives tens of
thousands of documents of a few to tens of thousands of bytes.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge.flops.shapes import ConfigError

STANDARD_LIBRARY_SEPARATOR = "\n\n\n"
"""Two blank lines, which PEP 8 puts between top-level definitions."""

_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def find_files(path: Any) -> Iterator[Path]:
    """Yield the text files that ``data.path`` names, in an order that is the same on every machine.

    ``path`` is a file, a folder (searched recursively without hidden entries), a glob, or a sequence of these.
    None means the sources of the running Python's standard library.

    Raises:
        ConfigError: there are no such files.
    """
    if path is None:
        yield from _standard_library()
        return
    entries = [path] if isinstance(path, (str, Path)) else list(path)
    if not entries:
        raise ConfigError("data.path=[] names no text. Give a text file, a folder or a glob, or leave it out.")
    for entry in entries:
        found = False
        for file in _expand(str(entry)):
            found = True
            yield file
        if not found:
            raise ConfigError(
                f"data.path={str(entry)!r} holds no files. Give a text file, a folder with text files or a glob that "
                "matches some; without data.path the standard library's sources are used."
            )


def _expand(entry: str) -> Iterator[Path]:
    path = Path(entry).expanduser()
    if path.is_dir():
        yield from _walk(path, leave_out=lambda name: name.startswith("."))
    elif path.is_file():
        yield path
    elif glob.has_magic(entry):
        yield from (Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file())
    else:
        raise ConfigError(f"data.path={entry!r} does not exist. Give a text file, a folder or a glob.")


def _walk(root: Path, leave_out: Callable[[str], bool]) -> Iterator[Path]:
    """The files below a folder by name; those of a folder precede those of its subfolders."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"data.path: {error.filename!r} cannot be read: {error.strerror}. Check its permissions.") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not leave_out(name))
        yield from (Path(folder, name) for name in sorted(files) if not leave_out(name))


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = False
    for file in _walk(root, leave_out=lambda name: name in _NOT_THE_LIBRARY):
        if file.suffix == ".py":
            found = True
            yield file
    if not found:
        raise ConfigError(f"data.path is unset, and {root} holds no Python sources. Set data.path to a folder of text.")


def read_documents(path: Any = None, separator: str | None = None, max_documents: int | None = None) -> list[bytes]:
    """Read all documents, as bytes, in file order.

    Args:
        path: as for :func:`find_files`.
        separator: text between two documents of one file; None means one document per file, and for the
            standard library :data:`STANDARD_LIBRARY_SEPARATOR`.
        max_documents: stop after this number of documents.

    Raises:
        ConfigError: there are no such files, or one cannot be read.
    """
    if separator is None and path is None:
        separator = STANDARD_LIBRARY_SEPARATOR
    cut = separator.encode() if separator else None
    documents: list[bytes] = []
    for file in find_files(path):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"data.path: {str(file)!r} cannot be read: {error.strerror}. Check its permissions or leave it out."
            ) from error
        documents.extend(_cut(content, cut))
        if max_documents is not None and len(documents) >= max_documents:
            return documents[:max_documents]
    return documents


def _cut(content: bytes, separator: bytes | None) -> Sequence[bytes]:
    parts = (content,) if separator is None else (part.strip(b"\n") for part in content.split(separator))
    return [part for part in parts if part]
