"""A tracker with a thread: nothing of it holds a step back, and every way in which it ends is told once."""

from __future__ import annotations

import threading

import pytest

from bridge.metrics.trackers import background
from bridge.metrics.trackers.background import BackgroundTracker


class Writer(BackgroundTracker):
    """Writes numbers, each once ``gate`` is open; an exception instead of a number is raised."""

    service = "the writer"

    def __init__(self, opening=None, finishing=None):
        self.written, self.threads, self.events = [], set(), []
        self.gate, self.begun, self.released = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        self.opening, self.finishing = opening, finishing
        super().__init__()

    def write(self, number):
        self._put(lambda: self._write(number))

    def _write(self, number):
        self.threads.add(threading.get_ident())
        self.begun.set()
        self.gate.wait(10)
        if isinstance(number, Exception):
            raise number
        self.written.append(number)

    def _open(self):
        self.events.append("open")
        if self.opening:
            raise self.opening

    def _finish(self):
        self.events.append("finish")
        if self.finishing:
            self.finishing()

    def _release(self):
        self.events.append("release")
        self.released.set()

    def _undelivered(self):
        return "; the rest is in a drawer"


def test_calls_run_in_their_order_in_one_other_thread():
    writer = Writer()
    for number in range(100):
        writer.write(number)
    writer.close()
    writer.close()
    assert writer.written == list(range(100))
    assert len(writer.threads) == 1
    assert threading.get_ident() not in writer.threads
    assert writer.events == ["open", "finish", "release"]


@pytest.mark.parametrize("where", ["open", "call", "finish"])
def test_an_error_in_the_thread_comes_out_once_and_what_is_held_is_freed(where):
    error = OSError("gone")

    def fail():
        raise error

    writer = Writer(error if where == "open" else None, fail if where == "finish" else None)
    if where == "call":
        writer.gate.clear()
        for number in (1, error, 2):
            writer.write(number)
        writer.gate.set()
    if where != "finish":
        writer._thread.join(10)
        with pytest.raises(OSError, match="gone"):
            writer.write(3)
    with pytest.raises(OSError, match="gone"):
        writer.close()
    writer.close()
    assert writer.written == ([1] if where == "call" else [])
    assert writer.events == ["open", *(["finish"] if where == "finish" else []), "release"]


def test_what_a_slow_receiver_cannot_take_is_dropped(monkeypatch):
    monkeypatch.setattr(background, "MOST_WAITING", 3)
    writer = Writer()
    writer.gate.clear()
    writer.write(0)
    assert writer.begun.wait(10)  # it is being written, and waits no longer
    for number in range(1, 7):
        writer.write(number)
    writer.gate.set()
    writer.close()
    assert writer.written == [0, 1, 2, 3]


def test_the_end_of_a_run_does_not_wait_for_ever_and_says_where_the_rest_is(monkeypatch):
    monkeypatch.setattr(background, "CLOSE_TIMEOUT", 0.05)
    stuck = threading.Event()
    writer = Writer(finishing=lambda: stuck.wait(10))
    with pytest.raises(TimeoutError) as error:
        writer.close()
    assert str(error.value) == "the writer did not finish within 0 s; the rest is in a drawer"
    assert writer.released.wait(10)  # while it is stuck
    stuck.set()
    writer._thread.join(10)
    assert writer.events == ["open", "finish", "release", "release"]


def test_opening_is_waited_for_whether_or_not_it_succeeds():
    for error in (None, OSError("gone")):
        writer = Writer(error)
        writer._wait_until_opened()
        assert writer._opened.is_set()
        assert writer.events[0] == "open"


def test_a_thread_that_is_stuck_holds_no_process_and_waits_are_bounded():
    tracker = BackgroundTracker()
    assert tracker._thread.daemon
    assert tracker._undelivered() == ""
    tracker.close()
    assert (background.CLOSE_TIMEOUT, background.MOST_WAITING) == (60.0, 10_000)
