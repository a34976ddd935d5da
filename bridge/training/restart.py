"""The id under which trackers know a run, where no checkpoint holds it yet.

A run that is started again before its first checkpoint begins at step 0, but it is the same run: torchrun has restarted its
workers (``--max-restarts``), or a scheduler has requeued its job.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Optional

_FILE = "restart.json"


def known_run_id(folder: Path) -> Optional[str]:
    """``WANDB_RUN_ID`` where it is set; else what :func:`remember_run_id` wrote under the same torchrun; None: a new run."""
    if run_id := os.environ.get("WANDB_RUN_ID"):
        return run_id
    try:
        before = json.loads((folder / _FILE).read_text())
        return before["run_id"] if before["launcher"] == _launcher() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_run_id(folder: Path, run_id: Optional[str]) -> None:
    """Keep the id beside the run, for workers that this torchrun may start again; on the rank that writes."""
    launcher = _launcher()
    if launcher and run_id:
        with contextlib.suppress(OSError):
            (folder / _FILE).write_text(json.dumps({"launcher": launcher, "run_id": run_id}))


def _launcher() -> Optional[list[str]]:
    """torchrun's own process, which outlives its workers; None without torchrun."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return [socket.gethostname(), str(os.getppid()), job] if job else None
