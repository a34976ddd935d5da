"""The folder for what can be computed again: ``BRIDGE_CACHE_DIR``, else ``$XDG_CACHE_HOME/bridge`` or ``~/.cache/bridge``."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Its path; it need not exist."""
    caches = os.environ.get("BRIDGE_CACHE_DIR") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bridge")
    return Path(os.path.expanduser(caches))


def replace_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically: a concurrent reader, in any process, gets the old content or the new one.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with new.open("x") as file:
            json.dump(content, file, separators=(",", ":"))
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
