"""Restarts of workers by torchrun (``--max-restarts``) or a scheduler: what they take over, and what they must not.

Weights, counters and the data's position come from the checkpoint.  Before the first checkpoint training starts over, but it is
the same run, so trackers get the same id.  Addresses of dead workers are not taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch

from bridge.training.errors import RunError

_FILE = "restart.json"
_KEY = "bridge/store"


def known_run_id(folder: Path) -> str | None:
    """``WANDB_RUN_ID`` if it is set; else the id that :func:`remember_run_id` wrote under the same torchrun; None: a new run."""
    if run_id := os.environ.get("WANDB_RUN_ID"):
        return run_id
    started_by = launcher()
    if started_by is None:
        return None
    try:
        before = json.loads((folder / _FILE).read_text())
        return before["run_id"] if before["launcher"] == started_by else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_run_id(folder: Path, run_id: str | None) -> None:
    """Store the id beside the run for workers that this torchrun may restart; on the rank that writes."""
    started_by = launcher()
    if started_by and run_id:
        with contextlib.suppress(OSError):
            (folder / _FILE).write_text(json.dumps({"launcher": started_by, "run_id": run_id}))


def launcher() -> list[str] | None:
    """Identifies torchrun's own process, which outlives its workers; None without torchrun."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return [socket.gethostname(), str(os.getppid()), job] if job else None


def needs_own_store() -> bool:
    """Whether workers would meet in torchrun's own store and might be started again."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def own_store(rank: int, world_size: int, timeout: timedelta) -> torch.distributed.Store:
    """A store for these workers alone, in the first rank's process.

    torch 2.13 keeps torchrun's store across restarts and does not distinguish the attempts, so gloo may read the address, and
    NCCL the id, of a dead worker.  The port of a dead store is recognized: nothing answers.

    Raises:
        RunError: the first rank's store was not found in time.
    """
    address = os.environ["MASTER_ADDR"]
    shared = torch.distributed.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        store = torch.distributed.TCPStore(address, 0, world_size, is_master=True, wait_for_workers=False, timeout=timeout)
        shared.set(_KEY, str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port = int(shared.get(_KEY))
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return torch.distributed.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    raise RunError(f"no first rank at {address} within train.distributed_timeout_minutes; look at the first machine's output")
