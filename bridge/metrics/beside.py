"""Work whose result is not needed at once, done in a thread beside the steps.

During most of a step the training thread does not hold the interpreter lock, because autograd and the device's queue run without
it.  The thread uses that time; work in the training thread would delay the step.
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
        function: is called with one item.
        name: name of the thread.
    """

    def __init__(self, function: Callable[[T], R], name: str) -> None:
        self._function, self._name = function, name
        self._items: Any = None
        self._results: Any = None
        self.open = 0
        """Number of items whose results were not taken yet."""

    def put(self, item: T) -> None:
        """Call the function with an item, in the thread."""
        if self._items is None:  # not earlier, so that an unused instance can be copied and pickled
            self._items, self._results = SimpleQueue(), SimpleQueue()
            arguments = (self._items, self._results, torch.cuda.current_device() if torch.cuda.is_initialized() else None)
            threading.Thread(target=self._work, args=arguments, name=self._name, daemon=True).start()
        self.open += 1
        self._items.put(item)

    def results(self) -> Iterator[R]:
        """The results of all open items; waits for them.

        Raises:
            Exception: what the function raised, in the place of its result.
        """
        while self.open:
            result, error = self._results.get()
            self.open -= 1
            if error is not None:
                raise error
            yield result

    def close(self) -> None:
        """End the thread, after all results were taken; the next item starts another one."""
        if self._items is not None:
            self._items.put(_END)
            self._items = None

    def _work(self, items: Any, results: Any, device: int | None) -> None:
        if device is not None:  # a new thread has the first device
            torch.cuda.set_device(device)
        while (item := items.get()) is not _END:
            try:
                results.put((self._function(item), None))
            except Exception as error:
                results.put((None, error))


_END = object()
