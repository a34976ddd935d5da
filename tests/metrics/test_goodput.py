"""Ledgers written by hand: parts that sum to the wall time, what was lost, and which job the ledger is of."""

from __future__ import annotations

import pytest

from bridge.metrics.goodput import PARTS, event_of, job_of, to_redo


def ledger(*events):
    return [{"time": float(time), "event": event, **facts} for time, event, facts in events]


FIRST = ledger(
    (0, "launched", {}),
    (4, "process", {}),
    (10, "imported", {}),
    (11, "groups", {}),
    (13, "training", {"step": 0, "launcher": "a", "flops": 0}),
    (16, "steps", {"step": 1, "data": 0.5}),
    (26, "evaluation", {"step": 8, "data": 1.5}),
    (28, "steps", {"step": 8, "data": 1.5}),
    (30, "checkpoint", {"step": 10, "data": 2.0}),
    (33, "steps", {"step": 10, "flops": 1000, "data": 2.0}),
    (40, "beat", {"step": 17, "data": 3.0}),
)
SECOND = ledger(
    (45, "process", {}),
    (50, "imported", {}),
    (51, "groups", {}),
    (52, "training", {"step": 10, "launcher": "a", "flops": 1000}),
    (54, "steps", {"step": 11, "data": 0.0}),
    (60, "steps", {"step": 17, "flops": 1700, "data": 1.0}),
    (63, "checkpoint", {"step": 20, "data": 1.0}),
    (64, "finishing", {"step": 20, "flops": 2000, "data": 1.0}),
    (65, "end", {"step": 20, "data": 1.0}),
)


def test_parts_are_the_wall_time_and_lost_steps_are_priced_by_those_that_did_them_again():
    job = job_of([*FIRST, *SECOND])
    assert {part: seconds for part, seconds in job.seconds.items() if seconds} == {
        "launch": 4,
        "import": 6 + 5,
        "groups": 1 + 1,
        "load": 2 + 1,
        "first_step": 3 + 2,
        "productive": (10 - 1) + (2 - 0.5) + (6 - 1) + 3,
        "data": 1 + 0.5 + 1,
        "evaluation": 2,
        "checkpoint": 3 + 1,
        "lost": 7,
        "down": 5,
        "end": 1,
    }
    assert job.seconds.keys() == PARTS.keys()
    assert job.wall == 65
    assert (job.processes, job.interruptions, job.steps, job.lost_steps) == (2, 1, 20, 7)
    assert (job.flops, job.lost_flops, job.flops_kept) == (2000, 700, 2000 / 2700)
    assert job.goodput == 18.5 / 65
    assert job.recoveries == [54 - 40]
    assert job.metrics()["goodput/mean_time_to_recover"] == 14


def test_a_job_that_goes_on_and_one_whose_lost_work_is_not_known_yet():
    job = job_of([*FIRST, *SECOND[:5]], now=57.0)
    assert (job.wall, job.lost_steps, job.lost_flops, job.flops_kept) == (57, 7, None, None)
    assert job.seconds["productive"] == 9 + 1.5 + 3
    assert to_redo([*FIRST, *SECOND[:4]], 10) == [17]
    assert to_redo([*FIRST, *SECOND], 20) == []
    assert to_redo(FIRST, 17) == []
    # A process whose peer is killed may still write its end; one that is killed while it saves writes no more.
    failed = [*FIRST[:-1], *ledger((40, "end", {"step": 17}), (45, "process", {}))]
    saving = [*FIRST[:-1], *ledger((40, "checkpoint", {"step": 17}), (45, "process", {}))]
    assert to_redo(failed, 10) == to_redo(saving, 10) == [17]


def test_before_the_first_checkpoint_all_is_lost():
    again = ledger((45, "process", {}), (52, "training", {"step": 0, "launcher": "a", "flops": 0}), (53, "steps", {"step": 1}))
    events = [event for event in FIRST if event["event"] != "checkpoint"]
    job = job_of([*events, *again])
    assert job.lost_steps == 17
    assert (job.seconds["productive"], job.seconds["lost"]) == (0, 40 - 16 - 2)


@pytest.mark.parametrize(("launcher", "processes"), [("a", 2), ("b", 1)])
def test_a_start_at_step_0_by_somebody_else_is_another_job(launcher, processes):
    more = ledger((100, "launched", {}), (101, "process", {}), (103, "training", {"step": 0, "launcher": launcher}))
    job = job_of([*FIRST, *SECOND, *more], now=104.0)
    assert job.processes == processes + (launcher == "a")
    assert job.wall == (104 if launcher == "a" else 4)


def test_a_requeued_job_goes_on():
    later = [{**event, "time": event["time"] + 1000, **({"launcher": "b"} if "launcher" in event else {})} for event in SECOND]
    launched = ledger((1030, "launched", {}))
    job = job_of([*FIRST, *launched, *later])
    assert (job.wall, job.seconds["down"], job.seconds["launch"]) == (1065, 990, 4 + 15)
    assert job.recoveries == [1054 - 40]


def test_an_empty_ledger():
    assert job_of([]).wall == 0
    assert job_of([]).goodput is None


HOST = ledger(
    (0, "process", {}),
    (10, "training", {"step": 0, "launcher": "a", "flops": 0, "host": True}),
    (12, "steps", {"step": 1, "data": 1.0, "unknown": 0.0}),
    (30, "beat", {"step": 9, "data": 3.0, "unknown": 4.0}),
)


def again(**facts):
    return ledger(
        (35, "process", {}),
        (40, "training", {"step": 5, "launcher": "a", "flops": 500, "host": True, **facts}),
        (41, "steps", {"step": 6}),
        (45, "finishing", {"step": 8, "flops": 800}),
        (46, "end", {"step": 8}),
    )


def test_a_loop_that_tells_only_of_steps():
    job = job_of([*HOST, *again(kept={"time": 20.0, "step": 5, "data": 2.0, "unknown": 1.0})])
    assert {part: seconds for part, seconds in job.seconds.items() if seconds} == {
        "start_up": 10 + 5,
        "first_step": 2 + 1,
        "productive": (8 - 1 - 1) + 4,
        "data": 1,
        "unknown": 1,
        "lost": 10,
        "down": 5,
        "end": 1,
    }
    assert (job.wall, job.lost_steps, job.lost_flops) == (46, 4, None)
    assert job.unknown == ("import", "groups", "load", "evaluation", "checkpoint", "flops")
    assert job.metrics()["goodput/unknown"] == list(job.unknown)
    assert "goodput/flops" not in job.metrics()


def test_where_nobody_knows_when_a_step_was_reached_the_time_around_it_is_unknown():
    """But what came after a later event was lost."""
    later = ledger(
        (24, "evaluation", {"step": 7, "data": 2.0, "unknown": 2.0}), (26, "steps", {"step": 7, "data": 2.0, "unknown": 2.0})
    )
    job = job_of([*HOST[:-1], *later, HOST[-1], *again()])
    assert (job.seconds["unknown"], job.seconds["lost"], job.seconds["productive"]) == (12, 4, 4)
    assert "lost" not in job.unknown
    job = job_of([*HOST, *again()])
    assert (job.seconds["unknown"], job.seconds["lost"], job.wall) == (18, 0, 46)
    assert "lost" in job.unknown


def test_our_loop_has_nothing_unknown():
    assert job_of([*FIRST, *SECOND]).unknown == ()
    assert "goodput/unknown" not in job_of([*FIRST, *SECOND]).metrics()


def test_a_line_that_is_no_event_is_none():
    assert event_of(b'{"event": "training", "time": 3, "step": 0}') == {"event": "training", "time": 3, "step": 0}
    for line in (
        b"[1]",
        b'{"ev',
        b'{"event": 7}',
        b'{"event": "end", "time": "late"}',
        b'{"event": "end", "time": NaN}',
        b'{"event": "steps", "time": 1, "step": []}',
        b'{"event": "training", "time": 1}',
    ):
        assert event_of(line) is None


def test_a_ledger_that_breaks_off_ends_with_what_it_was_last_told():
    job = job_of(FIRST)
    assert job.wall == sum(job.seconds.values()) == 40
    assert (job.seconds["productive"], job.seconds["data"]) == ((10 - 1) + (2 - 0.5) + (7 - 1), 1 + 0.5 + 1)


# Mutants that nothing tells apart: the step of an event without one in ``_times_of``, 0 or 1, since those looked for are later.
