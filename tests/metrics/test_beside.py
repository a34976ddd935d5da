"""Results come in the order of the calls, exceptions in their places, and nobody has to wait for them."""

import copy
import pickle
import threading

import pytest

from bridge.metrics.beside import Beside


def test_results_come_in_order_from_another_thread():
    held = threading.Event()

    def slow(number):
        held.wait(10)
        return number, threading.current_thread().name

    beside = Beside(slow, "rows")
    for number in range(3):
        beside.put(number)
    assert beside.open == 3
    held.set()
    assert list(beside.results()) == [(0, "rows"), (1, "rows"), (2, "rows")]
    assert list(beside.results()) == []
    beside.close()
    beside.close()
    beside.put(3)  # a loop that starts again
    assert list(beside.results()) == [(3, "rows")]
    beside.close()


def test_an_exception_is_raised_where_its_result_is_taken():
    beside = Beside(lambda number: 1 // number, "rows")
    for number in (1, 0, -1):
        beside.put(number)
    found = beside.results()
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(beside.results()) == [-1]
    beside.close()


def test_before_its_first_item_it_is_a_thing_like_others():
    beside = Beside(abs, "rows")
    for one in (copy.deepcopy(beside), pickle.loads(pickle.dumps(beside))):
        one.put(-2)
        assert list(one.results()) == [2]
        one.close()
