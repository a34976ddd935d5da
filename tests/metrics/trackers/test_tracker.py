"""Rows arrive whole and in order, and a tracker that fails is one warning."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.metrics.trackers.tracker import Trackers, first_line, quietly


class Recorder:
    """Remembers its rows; fails at a given step."""

    def __init__(self, fails_at=None):
        self.rows, self.facts, self.closed, self.fails_at = [], {}, 0, fails_at

    def log(self, metrics, step):
        if step == self.fails_at:
            raise OSError(28, "No space left on device")
        self.rows.append((step, dict(metrics)))

    def summary(self, facts):
        self.facts.update(facts)

    def close(self):
        self.closed += 1

    def how_to_look(self):
        return ["look"]


def test_parts_of_a_row_come_together():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 10)
    assert recorder.rows == []
    trackers.log({"mfu": 0.5}, 10, commit=True)
    assert recorder.rows == [(10, {"loss": 2.0, "mfu": 0.5})]


def test_a_report_that_comes_after_the_next_steps_loss_still_finds_its_row():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 1)
    trackers.log({"loss": 1.0}, 2)
    trackers.log({"mfu": 0.5}, 1, commit=True)
    trackers.log({"mfu": 0.6}, 2, commit=True)
    assert recorder.rows == [(1, {"loss": 2.0, "mfu": 0.5}), (2, {"loss": 1.0, "mfu": 0.6})]


def test_without_commits_rows_are_written_when_later_ones_come_and_at_the_end():
    recorder = Recorder()
    trackers = Trackers([recorder])
    for step in (1, 2, 3):
        trackers.log({"loss": step}, step)
    assert [step for step, _ in recorder.rows] == [1]
    trackers.close()
    trackers.close()
    assert [step for step, _ in recorder.rows] == [1, 2, 3]
    assert recorder.closed == 1


def test_committing_nothing_writes_the_open_rows_before_it_and_no_empty_row():
    recorder = Recorder()
    trackers = Trackers([recorder])
    trackers.log({"loss": 2.0}, 1)
    trackers.log({}, 2, commit=True)
    assert recorder.rows == [(1, {"loss": 2.0})]


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(caplog):
    broken, healthy = Recorder(fails_at=2), Recorder()
    trackers = Trackers([broken, healthy])
    for step in (1, 2, 3):
        trackers.log({"x": step}, step, commit=True)
    trackers.summary({"done": True})
    trackers.close()
    assert [step for step, _ in healthy.rows] == [1, 2, 3]
    assert [step for step, _ in broken.rows] == [1]
    assert (broken.facts, broken.closed) == ({}, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Recorder stopped: [Errno 28] No space left on device. Training continues without it."
    ]


def test_a_tracker_without_its_methods_is_one_warning_too(caplog):
    trackers = Trackers([SimpleNamespace(log=lambda metrics, step: None)])
    trackers.log({"x": 1}, 1, commit=True)
    trackers.summary({"done": True})
    trackers.close()
    assert [record.getMessage().partition(" stopped: ")[2] for record in caplog.records] == [
        "'types.SimpleNamespace' object has no attribute 'summary'. Training continues without it."
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_however_rows_come_each_is_written_once_whole_and_in_order(parts):
    """Steps never go back, as in a loop; a row is committed by its last part, if at all."""
    parts = sorted(parts, key=lambda part: part[0])
    whole = {}
    recorder = Recorder()
    trackers = Trackers([recorder])
    for number, (step, commit) in enumerate(parts):
        last = number + 1 == len(parts) or parts[number + 1][0] > step
        trackers.log({str(number): number}, step, commit=commit and last)
        whole.setdefault(step, {})[str(number)] = number
        assert len(whole) - len(recorder.rows) <= 2
    trackers.close()
    assert recorder.rows == list(whole.items())


def test_two_rows_wait_and_a_commit_leaves_later_ones_open():
    recorder = Recorder()
    trackers = Trackers([recorder])
    for step in (1, 2, 3):
        trackers.log({"x": step}, step)
    trackers.log({"y": 2}, 2, commit=True)
    assert recorder.rows == [(1, {"x": 1}), (2, {"x": 2, "y": 2})]
    trackers.close()
    assert recorder.rows[2:] == [(3, {"x": 3})]


def test_without_trackers_there_is_no_run_and_nothing_to_look_at():
    none, some = Trackers(), Trackers([Recorder(), Recorder()], run_id="r")
    assert (bool(none), none.run_id, none.how_to_look()) == (False, None, [])
    assert (bool(some), some.run_id, some.how_to_look()) == (True, "r", ["look", "look"])
    some.close()
    assert not some


def test_a_failure_is_said_without_its_login_and_one_in_closing_not_at_all(caplog):
    class Broken(Recorder):
        def log(self, metrics, step):
            raise OSError("https://me:secret@host refused\nand more")

        def close(self):
            raise RuntimeError("closed twice")

    trackers = Trackers([Broken()])
    trackers.log({"x": 1}, 1, commit=True)
    assert not trackers
    assert [record.getMessage() for record in caplog.records] == [
        "Broken stopped: https://***@host refused. Training continues without it."
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError()"),
        (OSError("\nbelow"), "OSError('\\nbelow')"),
        (OSError("\nhttp://me:pw@host"), "OSError('\\nhttp://***@host')"),
        (OSError("no http://me:pw@host"), "no http://***@host"),
    ],
)
def test_what_an_exception_says_on_one_line(error, line):
    assert first_line(error) == line


def test_an_interrupt_is_no_failure_of_a_tracker():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(interrupted)
    quietly(lambda: 1 / 0)
