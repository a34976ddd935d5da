"""Intervals on a clock that is set by hand."""

import math

from bridge.metrics.timing import HostClock, IntervalTimer


class HandClock:
    """Time passes when told to; marks are reached when told to."""

    def __init__(self):
        self.now, self.behind = 0.0, False

    def mark(self):
        return self.now

    def reached(self, mark):
        return not self.behind

    def seconds(self, start, end):
        return end - start


def at(clock, now):
    clock.now = now


def test_pauses_are_left_out_and_laps_leave_no_gap():
    clock = HandClock()
    timer = IntervalTimer(clock)
    at(clock, 5)
    timer.run()
    at(clock, 7)
    timer.pause()  # an evaluation from 7 to 17, a checkpoint inside it
    at(clock, 12)
    timer.pause()
    at(clock, 17)
    timer.run()
    timer.run()
    at(clock, 20)
    first = timer.lap()
    at(clock, 21)
    second = timer.lap()
    assert first.seconds() == 2 + 3
    assert second.seconds() == 1


def test_a_lap_while_paused():
    clock = HandClock()
    timer = IntervalTimer(clock)
    timer.run()
    at(clock, 4)
    timer.pause()
    at(clock, 10)
    assert timer.lap().seconds() == 4
    at(clock, 11)
    assert timer.lap().seconds() == 0
    timer.run()
    at(clock, 13)
    assert timer.lap().seconds() == 2


def test_before_the_start_there_is_no_time():
    lap = IntervalTimer(HandClock()).lap()
    assert lap.seconds() == 0
    assert lap.ready()


def test_a_lap_is_ready_when_its_last_mark_is_reached():
    clock = HandClock()
    timer = IntervalTimer(clock)
    timer.run()
    clock.behind = True
    lap = timer.lap()
    assert not lap.ready()
    clock.behind = False
    assert lap.ready()


def test_the_host_clock_runs():
    clock = HostClock()
    start = clock.mark()
    assert clock.reached(start)
    assert math.isfinite(clock.seconds(start, clock.mark()))
    assert clock.seconds(start, clock.mark()) >= 0
