"""One job per folder: two jobs would mix their rows, checkpoints and W&B files.

The operating system releases the lock when its process ends.  If that process was killed, the workers of its data loader may
keep it for some seconds; then it is taken over.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from bridge.training.errors import RunError

_LOCK, _OWNER = "job.lock", "job.owner"


class JobLock(contextlib.ExitStack):
    """The folders of a job, held until it is closed."""

    def take(self, folders: Iterable[str | Path]) -> None:
        """Lock these folders; one that cannot be written to is skipped, since writing to it reports the error.

        Raises:
            RunError: a running job holds one of them; the message names its host and process.
        """
        for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
            with contextlib.suppress(OSError):
                self._take(folder)

    def _take(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            host, pid = _owner(folder)
            if not _is_gone(host, pid):
                raise RunError(
                    f"{folder}: another job is running there (host {host}, process {pid}). Wait for it, end it, or give this one "
                    "another logger.dir and checkpoint.save."
                ) from None
            return
        self.callback(lock.release)
        (folder / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}")


def _owner(folder: Path) -> tuple[str, str]:
    try:
        host, _, pid = (folder / _OWNER).read_text().partition(" ")
    except OSError:
        return "unknown", "unknown"
    return host, pid


def _is_gone(host: str, pid: str) -> bool:
    """Whether the owner is known to have ended on this host."""
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:  # a process that may not be signaled is alive
        return isinstance(error, ProcessLookupError)
    return False
