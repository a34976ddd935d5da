"""Spans on a clock that is moved by hand; all sums exact."""

from __future__ import annotations

import re
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from bridge.metrics import spans as module
from bridge.metrics.observed import observed
from bridge.metrics.spans import BACKWARD, DATA, FORWARD, OPTIMIZER, PHASES, WAIT, WAITS, Phase, Spans, Timers, listen
from bridge.metrics.timing import HostClock
from tests.metrics.told import Hand, Rank


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


# ---- which names, and which waits ------------------------------------------------------------------------------------


def test_names_are_those_that_megatron_core_gives_its_timers():
    pytest.importorskip("megatron")
    (core,) = find_spec("megatron.core").submodule_search_locations
    source = "".join(path.read_text() for path in Path(core).rglob("*.py"))
    called = set(re.findall(r"timers\(\s*['\"]([\w-]+)['\"]", source))
    ours = {DATA, OPTIMIZER}  # batches are marked here; the optimizer's step is the loop's
    assert PHASES.keys() - ours <= called
    # What else it times lies inside of these: the parts of the optimizer's step, and gradients in what is no span of its own.
    rest = {name for name in called - PHASES.keys() if not name.startswith("optimizer-")}
    assert rest == {"embedding-grads-all-reduce", "conditional-embedder-grads-all-reduce"}


@pytest.mark.parametrize(
    ("inside", "phase"),
    [
        (FORWARD, Phase.COMPUTE_WAIT),
        (BACKWARD, Phase.COMPUTE_WAIT),
        ("params-all-gather", Phase.GRADIENTS_WAIT),
        ("non-tensor-parallel-grads-all-reduce", Phase.GRADIENTS_WAIT),
        ("backward-send-forward-recv", Phase.PIPELINE),
        (DATA, Phase.DATA),
        ("forward-backward", Phase.OTHER_WAIT),
        (OPTIMIZER, Phase.OTHER_WAIT),
        (None, Phase.OTHER_WAIT),
    ],
)
def test_a_wait_belongs_to_what_it_is_in(inside, phase):
    rank = Rank()
    rank.spend(3, *([inside] if inside else []), "wait")
    rank.spans.end_step()
    (step,) = rank.spans.steps()
    assert step.waits == [(phase, 3)]
    assert sum(step.seconds.values()) == step.seconds[phase] == 3


def test_every_phase_has_a_name_or_is_a_wait():
    assert {*PHASES.values(), *WAITS.values(), Phase.OTHER_WAIT} == set(Phase)
    assert WAIT not in PHASES


NAMES = ["forward-backward", FORWARD, WAIT]
CALLS = st.tuples(st.sampled_from(["push", "push", "pop", "wait", "spend"]), st.sampled_from(NAMES), st.integers(1, 9))


@given(st.lists(CALLS, min_size=8, max_size=14))
def test_whatever_is_begun_and_ended_no_second_counts_twice(calls):
    """Against a list of what each second was spent in: the innermost span that is ended in the step."""
    clock = Hand()
    spans = Spans(clock, every_step=True)
    spans.run()
    stack: list[tuple[str, Phase, list[int]]] = []
    owned: list[list[int]] = []  # of spans that ended: the seconds that were theirs alone
    phases: list[Phase] = []
    left: list[int] = []
    for call, name, seconds in calls:
        if call == "push":
            spans.push(name)
            if name != WAIT:  # a name that is not a span
                stack.append((name, PHASES[name], []))
        elif call == "wait":
            began = spans.begin_wait()
            assert began is (not stack or stack[-1][0] != WAIT)
            if began:
                stack.append((WAIT, WAITS.get(stack[-1][1] if stack else Phase.SCHEDULE, Phase.OTHER_WAIT), []))
        elif call == "pop":
            spans.pop(name)
            if name in [opened for opened, _, _ in stack]:
                inside: list[int] = []
                while (opened := stack.pop())[0] != name:
                    inside += opened[2]  # left without an end: its seconds are those of what it was in
                phases.append(opened[1])
                owned.append(opened[2] + inside)
        else:
            clock.now += seconds
            (stack[-1][2] if stack else left).append(seconds)
    spans.end_step()
    (step,) = spans.steps()
    expected = dict.fromkeys(Phase, 0.0)
    for phase, seconds in zip(phases, owned, strict=True):
        expected[phase] += sum(seconds)
    assert step.seconds == expected
    assert step.whole == clock.now


def test_what_an_exception_leaves_open_is_part_of_what_it_was_in():
    """The pass is left without its end, the wait in it was over: its 4 s are not the schedule's too, or the next pass's."""
    rank = Rank()
    rank.spans.push("forward-backward")
    rank.spans.push(FORWARD)
    rank.clock.now += 2
    rank.spend(4, "wait")
    rank.spans.pop("forward-backward")
    rank.spend(8, "forward-backward", FORWARD)
    rank.spans.end_step()
    (step,) = rank.spans.steps()
    found = {phase: seconds for phase, seconds in step.seconds.items() if seconds}
    assert found == {Phase.SCHEDULE: 2, Phase.COMPUTE_WAIT: 4, Phase.COMPUTE: 8}


def test_what_a_pause_leaves_open_is_nobodys_and_what_ended_in_it_is_its_own():
    rank = Rank()
    rank.spans.push("forward-backward")
    rank.spend(4, FORWARD)
    rank.spans.pause()
    rank.spans.run()
    rank.spend(8, OPTIMIZER)
    rank.spans.end_step()
    (step,) = rank.spans.steps()
    assert {phase: seconds for phase, seconds in step.seconds.items() if seconds} == {Phase.COMPUTE: 4, Phase.OPTIMIZER: 8}


# ---- threads, marks and steps ----------------------------------------------------------------------------------------


def test_of_other_threads_only_waits_of_a_pass_are_seen():
    """A backward pass has its own threads; what waits elsewhere (a loader, a checkpoint) is none of the step's."""
    found: dict[str, bool] = {}
    rank = Rank()
    for name in (BACKWARD, "all-grads-sync"):
        rank.spans.push(name)
        thread = threading.Thread(target=lambda name=name: found.update({name: rank.spans.begin_wait()}))
        thread.start()
        thread.join()
        rank.spans.pop(WAIT)
        rank.spans.pop(name)
    assert found == {BACKWARD: True, "all-grads-sync": False}


def test_a_step_counts_what_ended_and_forgets_what_did_not():
    rank = Rank()
    rank.spend(1, "optimizer")
    rank.spans.push("forward-backward")
    rank.spend(2, "forward-compute", "wait")
    assert rank.spans.unread == 0
    assert rank.spans.end_step() == 3
    assert rank.spans.unread == 1
    rank.spans.pop("forward-backward")  # it was of the step before
    assert rank.spans.end_step() == 0
    first, second = rank.spans.steps()
    assert (first.seconds[Phase.SCHEDULE], first.whole, second.whole) == (0, 3, 0)
    assert rank.spans.unread == 0


def test_a_paused_step_is_none():
    rank = Rank()
    rank.clock.now += 5
    rank.spans.pause()
    assert (rank.spans.end_step(), rank.spans.unread) == (0, 0)
    rank.spans.run()
    rank.spans.run()
    rank.clock.now += 2
    rank.spans.end_step()
    assert [step.whole for step in rank.spans.steps()] == [2]


def test_on_the_hosts_clock_batches_are_not_marked_and_a_pause_takes_none(monkeypatch):
    """Nanoseconds that loaders tell of: of the step, without what they took for others in its pauses."""
    monkeypatch.setattr(module, "waited", [7_000_000_000])
    spans = Spans(HostClock())
    assert not spans.needs_data_marked
    assert Spans(Hand()).needs_data_marked
    spans.run()
    module.waited[0] += 2_000_000_000
    spans.pause()
    module.waited[0] += 100_000_000_000
    spans.run()
    module.waited[0] += 500_000_000
    spans.end_step()
    module.waited[0] += 250_000_000
    spans.end_step()
    assert [step.seconds[Phase.DATA] for step in spans.steps()] == [2.5, 0.25]


def test_a_loops_timers_are_asked_for_by_level_and_a_new_one_is_taken():
    asked = []

    class Inner:
        def __call__(self, name, log_level=None):
            asked.append((name, log_level))
            return object()

    timers = Timers(Rank().spans, Inner())
    assert timers("optimizer", log_level=2) is not timers("optimizer")
    assert asked == [("optimizer", 2), ("optimizer", None)]
    alone = Timers(Rank().spans)
    assert alone("optimizer", log_level=1) is alone("optimizer")
    with pytest.raises(AttributeError, match="log_option"):
        alone.log_option  # noqa: B018


def test_a_sampled_step_has_what_was_marked_and_a_device_what_it_marked(monkeypatch):
    """What loaders tell of is of steps that are no sample, on the host's clock alone."""
    monkeypatch.setattr(module, "waited", [0])
    for spans in (Spans(HostClock(), every_step=True), Spans(Hand())):
        spans.run()
        module.waited[0] += 2_000_000_000
        spans.end_step()
        assert [step.seconds[Phase.DATA] for step in spans.steps()] == [0]


def test_torchs_own_waits_say_what_they_said_with_and_without_a_listener():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank = Rank()
    try:
        said = [dist.all_reduce(torch.ones(1), async_op=True).wait()]
        listen(rank.spans)
        said.append(dist.all_reduce(torch.ones(1), async_op=True).wait())
        rank.spans.pause()
        said.append(dist.all_reduce(torch.ones(1), async_op=True).wait())
    finally:
        listen(None)
        dist.destroy_process_group()
    rank.spans.run()
    rank.spans.end_step()
    (step,) = rank.spans.steps()
    assert said == [True] * 3
    assert step.waits == [(Phase.OTHER_WAIT, 0)]


def test_a_clock_that_has_failed_is_not_started_again():
    clock = Hand()
    spans = Spans(clock, every_step=True)
    spans.run()
    clock.mark = lambda: 1 / 0
    spans._mark = clock.mark
    spans.push("optimizer")
    assert not spans.running
    spans.run()
    assert not spans.running
    with pytest.raises(ZeroDivisionError):
        spans.end_step()
