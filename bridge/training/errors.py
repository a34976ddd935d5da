"""What a run may fail with, as seen by the person who started it.

A mistake in the configuration is a :class:`~bridge.flops.shapes.ConfigError` (exit code 2): every rank finds it,
because every rank checks the same things.  Whatever goes wrong later, or on one machine only, is a :class:`RunError`
(exit code 1).  Both carry a message for people: option, value, remedy.  Anything else is a defect and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bridge.flops.shapes import ConfigError

EXIT_OK = 0
EXIT_RUN = 1
EXIT_CONFIG = 2

__all__ = ["EXIT_CONFIG", "EXIT_OK", "EXIT_RUN", "ConfigError", "RunError", "on_this_rank"]


class RunError(RuntimeError):
    """The run cannot go on for a reason outside its configuration: a disk, a file, another rank.

    ``shared``: every rank raises the same error, so one of them may speak for all.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


@contextmanager
def on_this_rank() -> Iterator[None]:
    """While training a mistake is found by the rank that comes upon it, in a row of its data say: it has to speak itself."""
    try:
        yield
    except ConfigError as error:
        # A process that prepares batches puts its traceback before the message.
        raise RunError(str(error).rstrip().rpartition(f"{ConfigError.__name__}: ")[2]) from error
