"""Spans on a clock that is moved by hand, what ranks send of them, and the parts that come out; all sums exact."""

from __future__ import annotations

import pytest

from bridge.metrics.observed import observed
from bridge.metrics.spans import Phase, Spans, Timers, listen
from bridge.metrics.time_parts import PASSES_KEPT, WAITS_KEPT, MeanStep, RankTimes, TimeEntries, measured, time_parts
from bridge.metrics.why import REMEDIES, waterfall, why

ONE_STAGE = TimeEntries()


class Hand:
    """A clock that stands still until it is moved; the device is ``behind`` by so much."""

    def __init__(self) -> None:
        self.now, self.behind = 0.0, 0.0

    def mark(self) -> float:
        return self.now

    def reached(self, mark: float) -> bool:
        return mark <= self.now - self.behind

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Rank:
    """A rank whose steps are told."""

    def __init__(self, shape: TimeEntries = ONE_STAGE, stage: int = 0, **options) -> None:
        self.clock = Hand()
        self.spans = Spans(self.clock, **{"every_step": True, **options})
        self.times = RankTimes(shape, stage)
        self.spans.run()

    def spend(self, seconds: float, *names: str) -> None:
        """Inside spans of these names, the outermost first; ``wait`` as ``Work.wait`` makes it."""
        for name in names:
            if name == "wait":
                seen = self.spans.begin_wait()
            else:
                self.spans.push(name)
        self.clock.now += seconds
        for name in reversed(names):
            if name != "wait" or seen:
                self.spans.pop(name)

    def end_step(self) -> None:
        self.spans.end_step()
        self.times.add(self.spans.steps())

    def send(self):
        return self.times.take()


def together(shape: TimeEntries, ranks: list[Rank]) -> MeanStep:
    sent = [rank.send() for rank in ranks]
    sums = [sum(column) for column in zip(*(one[0] for one in sent), strict=True)]
    least = [min(column) for column in zip(*(one[1] for one in sent), strict=True)]
    found = measured(shape, ranks[0].times, sums, least, len(ranks))
    assert found is not None
    return found


# ---- spans ----------------------------------------------------------------------------------------------------------


def test_what_lies_inside_is_not_counted_twice():
    rank = Rank()
    spans = rank.spans
    spans.push("forward-backward")
    rank.spend(1, "forward-compute", "data")
    spans.push("forward-compute")
    rank.clock.now += 2
    rank.spend(4, "wait")
    rank.spend(8, "unknown name")
    spans.pop("forward-compute")
    rank.spend(16, "all-grads-sync", "wait")
    rank.spend(32, "wait")
    spans.pop("forward-backward")
    rank.spend(64, "optimizer")
    rank.clock.now += 128
    spans.end_step()
    (step,) = spans.steps()
    assert step.whole == 255
    assert {phase: seconds for phase, seconds in step.seconds.items() if seconds} == {
        Phase.DATA: 1,
        Phase.COMPUTE: 10,
        Phase.COMPUTE_WAIT: 4,
        Phase.GRADIENTS_WAIT: 16,
        Phase.OTHER_WAIT: 32,
        Phase.OPTIMIZER: 64,
    }
    assert step.waits == [(Phase.COMPUTE_WAIT, 4), (Phase.GRADIENTS_WAIT, 16), (Phase.OTHER_WAIT, 32)]
    assert step.passes["forward-compute"] == [1, 14]


def test_in_steps_that_are_no_sample_nothing_is_seen_but_data():
    rank = Rank(every_step=False)
    for sampled in (False, True, False):
        if sampled:
            rank.spans.sample()
        rank.spend(1, "data")
        rank.spend(2, "forward-backward", "backward-compute", "wait")
        rank.spend(4, "optimizer")
        rank.end_step()
    seen = [{phase.value: seconds for phase, seconds in step.seconds.items() if seconds} for step in rank.times._steps]
    assert seen == [{"data": 1}, {"data": 1, "compute_wait": 2, "optimizer": 4}, {"data": 1}]
    assert [(step.whole, step.sampled, len(step.waits)) for step in rank.times._steps] == [
        (7, False, 0),
        (7, True, 1),
        (7, False, 0),
    ]


def test_pauses_exceptions_and_waits_within_waits():
    rank = Rank()
    rank.spend(1, "forward-compute")
    rank.spans.pause()
    rank.spend(100, "forward-compute", "wait")
    rank.spans.run()
    rank.spans.push("forward-backward")
    rank.spans.push("backward-compute")  # left by an exception
    rank.clock.now += 2
    rank.spans.pop("forward-backward")
    rank.spans.pop("optimizer")  # never began
    assert rank.spans.begin_wait()
    assert not rank.spans.begin_wait()
    rank.spans.pop("wait")
    rank.spans.end_step()
    (step,) = rank.spans.steps()
    assert (step.whole, step.seconds[Phase.COMPUTE], step.seconds[Phase.SCHEDULE]) == (3, 1, 2)


def test_steps_are_read_when_the_device_is_through():
    rank = Rank()
    rank.clock.behind = 5
    for _ in range(3):
        rank.spend(4, "optimizer")
        rank.spans.end_step()
    assert [step.whole for step in rank.spans.steps()] == [4]
    rank.clock.now += 100
    assert [step.seconds[Phase.OPTIMIZER] for step in rank.spans.steps()] == [4, 4]


def test_a_clock_that_fails_does_so_at_the_end_of_the_step():
    rank = Rank()
    rank.clock.mark = lambda: 1 / 0
    rank.spans._mark = rank.clock.mark
    rank.spans.push("optimizer")
    assert not rank.spans.begin_wait()
    with pytest.raises(ZeroDivisionError):
        rank.spans.end_step()


def test_the_loops_own_timers_go_on():
    calls = []

    class Inner:
        def __call__(self, name, log_level=None):
            self.name = name
            return self

        def start(self, barrier=False):
            calls.append(("start", self.name, barrier))

        def stop(self, barrier=False):
            calls.append(("stop", self.name, barrier))

        def elapsed(self, reset=True):
            return 7.0

        log_option = "minmax"

    rank = Rank()
    timers = Timers(rank.spans, Inner())
    timers("optimizer", log_level=1).start(barrier=True)
    rank.clock.now += 1
    timers("optimizer").stop()
    assert calls == [("start", "optimizer", True), ("stop", "optimizer", False)]
    assert (timers("x").elapsed(), timers.log_option) == (7.0, "minmax")
    rank.spans.end_step()
    assert next(rank.spans.steps()).seconds[Phase.OPTIMIZER] == 1
    alone = Timers(rank.spans)
    with pytest.raises(AttributeError):
        alone("x").elapsed()


def test_nobody_listens():
    listen(None)
    assert next(observed(iter(["a batch"]), lambda batch, waited_ns: None)) == "a batch"


# ---- over all ranks -------------------------------------------------------------------------------------------------


def test_of_each_collective_the_least_is_communication_and_the_rest_waiting():
    """Now one rank comes late, now the other: 1 s of transfer each time, though each rank waits 6 s in sum."""
    ranks = [Rank(), Rank()]
    for first, second in ((1, 5), (5, 1), (2, 2)):
        ranks[0].spend(first, "all-grads-sync", "wait")
        ranks[1].spend(second, "all-grads-sync", "wait")
        ranks[0].spend(5 - first, "forward-compute")
        ranks[1].spend(5 - second, "forward-compute")
    for rank in ranks:
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert found == MeanStep(step=15, compute=7, communication=pytest.approx(4), imbalance=pytest.approx(4))
    parts = time_parts(15, found, ideal=3, padding=0.5, recompute=1.0)
    assert parts == pytest.approx(
        {"ideal": 3, "padding": 0.5, "recompute": 1, "kernels": 2.5, "imbalance": 4, "bubble": 0, "communication": 4,
         "optimizer": 0, "data": 0, "host": 0},
        abs=1e-9,
    )  # fmt: skip


def test_ranks_that_call_different_collectives_are_not_compared():
    ranks = [Rank(), Rank()]
    ranks[0].spend(1, "all-grads-sync", "wait")
    for _ in range(2):
        ranks[1].spend(1, "all-grads-sync", "wait")
    for rank in ranks:
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert (found.communication, found.imbalance) == (1.5, 0)


def test_the_sample_speaks_for_the_other_steps_but_for_their_data():
    """Steps of 8, 16, 24 and 32 s, of which the second is the sample; 10 s of data in the last: 70 s are parted 8 : 4 : 4."""
    rank = Rank(every_step=False)
    for step in range(4):
        if step == 1:
            rank.spans.sample()
        rank.spend(4 * step + 4, "forward-compute")
        rank.spend(2 * step + 2, "optimizer")
        rank.spend(2 * step + 2)
        if step == 3:
            rank.spend(10, "data")
        rank.end_step()
    found = together(TimeEntries(), [rank])
    assert rank.times.lengths == [8, 16, 24, 42]
    assert found == MeanStep(step=22.5, compute=10, optimizer=5, data=2.5)
    parts = time_parts(45, found)
    assert (parts["data"], parts["host"], sum(parts.values())) == pytest.approx((5, 10, 45))


def test_steps_wait_for_a_sample_to_speak_for_them():
    rank = Rank(every_step=False)
    rank.spend(1, "optimizer")
    rank.end_step()
    assert rank.send() is None
    rank.spans.sample()
    rank.spend(3, "optimizer")
    rank.end_step()
    assert together(TimeEntries(), [rank]) == MeanStep(step=2, compute=0, optimizer=2)


def test_more_waits_than_entries_are_taken_together():
    most = WAITS_KEPT[Phase.COMPUTE_WAIT]
    ranks = [Rank(), Rank()]
    for rank, seconds in zip(ranks, (1, 3), strict=True):
        for _ in range(3 * most + 1):
            rank.spend(seconds, "backward-compute", "wait")
        rank.end_step()
    found = together(TimeEntries(), ranks)
    assert (found.communication, found.imbalance) == (3 * most + 1, 3 * most + 1)


@pytest.mark.parametrize("micro_batches", [4, PASSES_KEPT, 3 * PASSES_KEPT])
def test_what_a_pipeline_waits_is_its_bubble_and_transfer(micro_batches):
    """Two equal stages, 1 s forward, 2 s backward: a bubble of 3 s on each; the stages wait 3 s and 1 s longer."""
    shape = TimeEntries(stages=2)
    ranks = [Rank(shape, 0), Rank(shape, 1)]
    for rank, waits in zip(ranks, (4, 6), strict=True):
        for _ in range(micro_batches):
            rank.spend(1, "forward-compute")
            rank.spend(2, "backward-compute")
        rank.spend(waits - 2, "forward-recv", "wait")
        rank.spend(2, "wait")
        rank.end_step()
    found = together(shape, ranks)
    assert found == MeanStep(
        step=3 * micro_batches + 5, compute=3 * micro_batches, bubble=pytest.approx(3), communication=pytest.approx(2)
    )


def test_a_slow_stage_is_imbalance():
    shape = TimeEntries(stages=4)
    ranks = [Rank(shape, stage) for stage in range(4)]
    for stage, rank in enumerate(ranks):
        factor = 2 if stage == 2 else 1
        for _ in range(4):
            rank.spend(factor, "forward-compute")
            rank.spend(2 * factor, "backward-compute")
        rank.spend(31 - 12 * factor, "backward-recv", "wait")
        rank.end_step()
    found = together(shape, ranks)
    assert found == MeanStep(
        step=31, compute=15, bubble=pytest.approx(11.25), imbalance=pytest.approx(4.75), communication=pytest.approx(0)
    )


def test_without_a_peak_compute_is_one_part_and_a_rank_without_a_reading_leaves_none():
    found = MeanStep(step=2.0, compute=1.0, data=0.5)
    assert time_parts(2.0, found) == pytest.approx(
        {"compute": 1, "imbalance": 0, "bubble": 0, "communication": 0, "optimizer": 0, "data": 0.5, "host": 0.5}
    )
    assert time_parts(0.0, found) == {}
    assert (
        measured(TimeEntries(), RankTimes(TimeEntries()), [0] * len(TimeEntries().entries), [0] * TimeEntries().minima, 1) is None
    )
    assert RankTimes(TimeEntries()).take() is None


# ---- in words -------------------------------------------------------------------------------------------------------


def test_the_largest_loss_and_its_remedy_in_a_sentence():
    rows = [{f"throughput/time/{name}": value for name, value in row.items()} for row in (
        {"ideal": 0.2, "kernels": 0.2, "communication": 0.5, "host": 0.1},
        {"ideal": 0.4, "kernels": 0.0, "communication": 0.5, "host": 0.1},
        {"ideal": 9.0},
    )]  # fmt: skip
    parts = waterfall([*rows, {"lm loss": 1.0}])
    assert parts == pytest.approx({"ideal": 0.3, "kernels": 0.1, "communication": 0.5, "host": 0.1})
    assert why(parts) == (
        "Mean MFU 30.0%: of 1 s per step 300 ms are the counted work at the peak. Most of the rest is communication, "
        f"500 ms (50%): {REMEDIES['communication']}. Then kernels 10%, host 10%."
    )
    assert why({}) is None
    assert why({"compute": 0.75, "host": 0.25}).startswith("A mean step takes 1 s. Most of the rest is compute, 750 ms (75%)")
