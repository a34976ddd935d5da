"""The errors with which a run may fail.

A mistake in the configuration is a :class:`~bridge.flops.shapes.ConfigError` (exit code 2): every rank finds it, because every
rank checks the same things.  Whatever goes wrong later, or on one machine only, is a :class:`RunError` (exit code 1).  Both
messages name option, value and remedy.  Any other exception is a defect and keeps its traceback.
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
    """The run cannot continue, for a reason outside its configuration: a disk, a file, another rank.

    ``shared``: every rank raises the same error, so that one rank reports it for all.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


@contextmanager
def on_this_rank() -> Iterator[None]:
    """Turn a ConfigError during training (about a row of data, say) into a RunError: only this rank can report it."""
    try:
        yield
    except ConfigError as error:
        # A process that prepares batches puts its traceback before the message.
        raise RunError(str(error).rstrip().rpartition(f"{ConfigError.__name__}: ")[2]) from error
