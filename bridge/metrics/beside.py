"""Work that needs no result at once, done beside the steps by a thread of its own.

Most of a step the training thread holds no interpreter: autograd and the device's queue run without it.  There the thread finds
its time; a row that were made in the training thread would be made while everything waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Beside(Generic[T, R]):
    """A function called in a thread of its own, and its results in the order of the calls.

    Args:
        function: of one item.
        name: of the thread.
    """

    def __init__(self, function: Callable[[T], R], name: str) -> None:
        self._function, self._name = function, name
        self._items: Any = None
        self._results: Any = None
        self.open = 0
        """Items whose results were not taken yet."""

    def put(self, item: T) -> None:
        """Call the function with it, some time from now."""
        if self._items is None:  # not before: until then it can be copied and pickled
            self._items, self._results = SimpleQueue(), SimpleQueue()
            arguments = (self._items, self._results, torch.cuda.current_device() if torch.cuda.is_initialized() else None)
            threading.Thread(target=self._work, args=arguments, name=self._name, daemon=True).start()
        self.open += 1
        self._items.put(item)

    def results(self) -> Iterator[R]:
        """All that are open; waits for those that are not there yet.

        Raises:
            Exception: what the function has raised, in the place of its result.
        """
        while self.open:
            result, error = self._results.get()
            self.open -= 1
            if error is not None:
                raise error
            yield result

    def close(self) -> None:
        """The thread ends; the next item starts another. After all results were taken."""
        if self._items is not None:
            self._items.put(_END)
            self._items = None

    def _work(self, items: Any, results: Any, device: int | None) -> None:
        if device is not None:  # a thread starts on the first one
            torch.cuda.set_device(device)
        while (item := items.get()) is not _END:
            try:
                results.put((self._function(item), None))
            except Exception as error:
                results.put((None, error))


_END = object()
