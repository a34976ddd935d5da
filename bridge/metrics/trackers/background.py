"""A tracker that communicates with another process or machine, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from bridge.metrics.trackers.tracker import quietly

#: Seconds that the end of a run waits for a tracker to write or upload the rest.
CLOSE_TIMEOUT = 60.0
#: Number of calls that may wait for a slow receiver; more are dropped.
MOST_WAITING = 10_000


class BackgroundTracker:
    """The thread and its queue. Subclasses define ``_open`` and ``_finish``, and pass calls to ``_put``.

    The next call raises an error of the thread, so that :class:`Trackers` learns of it.
    """

    service = "the tracker"
    """The name of the service in messages."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._error: BaseException | None = None
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=self.service, daemon=True)
        self._thread.start()

    # In the training loop's thread: never blocks.

    def _put(self, call: Callable[[], Any]) -> None:
        if self._error is not None:
            raise self._error
        if self._calls.qsize() < MOST_WAITING:
            self._calls.put(call)

    def close(self) -> None:
        """Wait for the thread, but no longer than ``CLOSE_TIMEOUT``."""
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join(CLOSE_TIMEOUT)
            if self._thread.is_alive():
                threading.Thread(target=quietly, args=(self._release,), daemon=True).start()
                raise TimeoutError(f"{self.service} did not finish within {CLOSE_TIMEOUT:.0f} s{self._undelivered()}")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _wait_until_opened(self) -> None:
        """Wait until the tracker is open; only at the end of a run, which waits for it anyway."""
        self._opened.wait(CLOSE_TIMEOUT)

    # In the tracker's own thread.

    def _work(self) -> None:
        try:
            self._open()
            self._opened.set()
            while (call := self._calls.get()) is not None:
                call()
            self._finish()
        except Exception as error:
            self._error = error
        finally:
            self._opened.set()
            quietly(self._release)

    def _open(self) -> None:
        """Connect; may take long."""

    def _finish(self) -> None:
        """Write the rest."""

    def _release(self) -> None:
        """Release all resources, also after a failure or while ``_finish`` is stuck."""

    def _undelivered(self) -> str:
        """The end of a sentence: where the undelivered data is."""
        return ""
