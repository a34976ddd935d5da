"""How a training process ends: the exit code, one message for the whole job, and signals.

torchrun ends a job as soon as its first process exits with an error, and prints its own summary.  So the rank that reports the
error exits at once, the others wait a little before they exit, and the message also goes into the file that torchrun quotes in
its summary.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

from bridge.training.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUN, ConfigError, RunError

LINGER_S = 2.0
"""Seconds that ranks other than the first wait before they exit with an error."""

# Messages of collectives whose peer has closed the connection.
_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Connection was likely closed",
    "Broken pipe",
    "No route to host",
    "Network is unreachable",
    "NCCL communicator was aborted",
    "remote process exited",
    "Socket closed",
)
# Messages of collectives whose peer does not answer.
_SILENT_PEER = ("Timed out waiting", "Timed out after", "wait timeout after")


def run(action: Callable[[], None], *, rank: int) -> int:
    """Call ``action`` and turn what it raises into one message and an exit code: 0, 1 (run time) or 2 (configuration).

    An error that is the same on every rank is reported by the first rank only.  Any other error is reported by its own rank,
    unless the first rank has ended the job by then.
    """
    try:
        action()
        return EXIT_OK
    except ConfigError as error:
        return _fail(str(error), EXIT_CONFIG, rank=rank, speaks=rank == 0)
    except RunError as error:
        return _fail(str(error), EXIT_RUN, rank=rank, speaks=rank == 0 or not error.shared)
    except Exception as error:
        if any(text in str(error) for text in _SILENT_PEER):
            said = str(error).splitlines()[0].rpartition("] ")[2]  # without the place in gloo's source
            message = (
                f"another rank did not answer within train.distributed_timeout_minutes ({said}): its machine is cut off, has "
                "failed or is much slower. Check that machine, then restart the job; checkpoint.load continues it"
            )
            return _fail(message, EXIT_RUN, rank=rank, speaks=True)
        if any(text in str(error) for text in _LOST_PEER):
            # This is not the cause: the lost rank or torchrun reports that.
            message = "the connection to another rank was lost; see that rank"
            return _fail(message, EXIT_RUN, rank=rank, speaks=True, last=True)
        return _fail(f"{type(error).__name__}: {error}", EXIT_RUN, rank=rank, speaks=True, details=traceback.format_exc())


def _fail(message: str, code: int, *, rank: int, speaks: bool, last: bool = False, details: str | None = None) -> int:
    if rank > 0 or last:
        time.sleep(LINGER_S)
    with contextlib.suppress(OSError):  # the console may be a file on a full disk
        if details:
            print(details, file=sys.stderr)
        if speaks:
            who = "" if rank == 0 else f"rank {rank}: "
            print(f"bridge: {who}error: {message}", file=sys.stderr, flush=True)
    _tell_torchrun(message, code)
    return code


def _tell_torchrun(message: str, code: int) -> None:
    """Write the file whose content torchrun quotes as the cause of a failure, in the form it expects."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError), open(path, "w") as file:  # the message stands on the console
            json.dump({"message": {"message": message, "errorCode": code, "extraInfo": extra}}, file)


class StopSignals:
    """Records that the process was asked to end (SIGTERM, SIGINT), so that it can finish its step first.

    Use as a context manager; it restores the previous handlers.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """The name of the first signal; None if there was none."""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # On Ctrl-C the terminal and torchrun both send a signal: a second one has no meaning.
        self.received = self.received or signal.Signals(number).name
