"""Stretches of a step that lie inside each other, each counted without what lies in it: so their sum is the whole.

The names are those that megatron-core gives to ``config.timers``; beside them ``data`` (the next batch is fetched) and
``wait`` (``torch.distributed`` waits for other ranks: every blocking collective does so in ``Work.wait``).  A name belongs to
a :class:`Phase`, and so does a wait, by the phase it is in.

In most steps nothing is marked but the end of the step and, on a GPU, what batches take: all else is seen in a sample of the
steps.  On a CPU what batches took is known without marks.

Marks come from a clock (:mod:`bridge.metrics.timing`): on a CPU the host's, on a GPU events in the current stream, which
nothing waits for: a step is read once the device has finished it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from typing import Any, Protocol

from bridge.metrics.timing import Clock, HostClock


class Phase(Enum):
    """What a rank does."""

    SCHEDULE = "schedule"
    COMPUTE = "compute"
    DATA = "data"
    PIPELINE = "pipeline"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    COMPUTE_WAIT = "compute_wait"
    GRADIENTS_WAIT = "gradients_wait"
    OTHER_WAIT = "other_wait"

    __hash__ = object.__hash__  # an enum's own is a Python function, and phases are keys all the time


FORWARD, BACKWARD, DATA, WAIT, OPTIMIZER = "forward-compute", "backward-compute", "data", "wait", "optimizer"

_P2P = (
    *("forward-recv", "forward-send", "backward-recv", "backward-send"),
    *("forward-send-backward-recv", "backward-send-forward-recv", "forward-send-forward-recv"),
    *("backward-send-backward-recv", "forward-backward-send-forward-backward-recv"),
)
PHASES = {
    "forward-backward": Phase.SCHEDULE,
    FORWARD: Phase.COMPUTE,
    BACKWARD: Phase.COMPUTE,
    DATA: Phase.DATA,
    OPTIMIZER: Phase.OPTIMIZER,
    **dict.fromkeys(_P2P, Phase.PIPELINE),
    **dict.fromkeys(("all-grads-sync", "non-tensor-parallel-grads-all-reduce", "params-all-gather"), Phase.GRADIENTS),
}
"""The names that are spans; others are part of what they lie in."""

WAITS = {
    Phase.COMPUTE: Phase.COMPUTE_WAIT,
    Phase.GRADIENTS: Phase.GRADIENTS_WAIT,
    Phase.PIPELINE: Phase.PIPELINE,
    Phase.DATA: Phase.DATA,
}
"""What a wait is, by the phase it is in; anywhere else it is one of :attr:`Phase.OTHER_WAIT`."""


_NOTHING = dict.fromkeys(Phase, 0.0)


@dataclass
class Step:
    """The seconds of one step of this rank.

    Attributes:
        whole: from the end of the step before, without pauses.
        seconds: by phase, without what lies inside; of steps that are no sample, of data alone.
        sampled: whether everything was seen.
        waits: (phase, seconds) of each wait in the order of the calls, of a sampled step.
        passes: seconds of each forward and each backward pass in order, with all that lies inside, of a sampled step.
    """

    whole: float = 0.0
    seconds: dict[Phase, float] = field(default_factory=_NOTHING.copy)
    sampled: bool = False
    waits: list[tuple[Phase, float]] = field(default_factory=list)
    passes: dict[str, list[float]] = field(default_factory=lambda: {FORWARD: [], BACKWARD: []})


#: Nanoseconds that loaders took in this process; whoever takes a batch adds to it.
waited = [0]

#: A span that ended: how many had ended when it began, name, phase, start, end. Those that ended since then lie inside it.
_Span = tuple[int, str, Phase, Any, Any]


class Spans:
    """The spans of one rank.

    Args:
        clock: of the marks.
        every_step: whether each step is a sample.
    """

    def __init__(self, clock: Clock, *, every_step: bool = False) -> None:
        self._clock, self._mark = clock, clock.mark
        self._every_step = every_step
        self._thread = threading.get_ident()
        self.running = False
        """Whether training continues."""
        self._error: Exception | None = None
        self.sampled = every_step
        """Whether everything is seen in the step that runs now."""
        self._stack: list[tuple[str, Phase, int, Any]] = []
        self._ended: list[_Span] = []
        self.needs_data_marked = not isinstance(clock, HostClock)
        """Whether batches are marked in steps that are no sample too: a device may not have waited as long as the host."""
        self._since: Any = None
        self._stretches: list[tuple[Any, Any]] = []
        self._waited_before = self._waited = 0
        """Nanoseconds that loaders took: before this stretch, and in the step's other ones."""
        self._unread: deque[tuple[bool, list[_Span], list[tuple[Any, Any]], int]] = deque()

    # ---- in the step ------------------------------------------------------------------------------------------------

    def push(self, name: str) -> None:
        """Something begins; a name that is not a span is left out."""
        if self.running and (self.sampled or name == DATA) and (phase := PHASES.get(name)) is not None:
            self._open(name, phase)

    def pop(self, name: str) -> None:
        """It ends, and what began inside it and was left by an exception; without its beginning nothing happens."""
        stack = self._stack
        if not stack or (stack[-1][0] != name and all(opened[0] != name for opened in stack)):
            return
        try:
            end = self._mark()
        except Exception as error:
            self._break(error)
            return
        while (opened := stack.pop())[0] != name:
            pass
        self._ended.append((opened[2], name, opened[1], opened[3], end))

    def _open(self, name: str, phase: Phase) -> None:
        try:
            self._stack.append((name, phase, len(self._ended), self._mark()))
        except Exception as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        """A clock that fails must not do so in a pass: the error is reported at the end of the step."""
        self.running, self._error = False, error
        self._stack.clear()

    def begin_wait(self) -> bool:
        """A wait begins, unless it is part of another or of a step that is not a sample; whether it does."""
        if not (self.sampled and self.running):
            return False
        phase = self._stack[-1][1] if self._stack else Phase.SCHEDULE
        if phase is not Phase.COMPUTE and threading.get_ident() != self._thread:  # backward passes have their own threads
            return False
        if self._stack and self._stack[-1][0] == WAIT:
            return False
        self._open(WAIT, WAITS.get(phase, Phase.OTHER_WAIT))
        return True

    @property
    def unread(self) -> int:
        """Steps that were not read yet."""
        return len(self._unread)

    # ---- between steps ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Training continues. Does nothing if it is already running."""
        if not self.running and self._error is None:
            self.running, self._since, self._waited_before = True, self._mark(), waited[0]

    def pause(self) -> None:
        """Training pauses. Does nothing if it is already paused."""
        if self.running:
            self._stretches.append((self._since, self._mark()))
            self._waited += waited[0] - self._waited_before
        self.running = False
        self._stack.clear()

    def end_step(self) -> int:
        """A step is over.

        Returns:
            How many spans have ended in it.

        Raises:
            Exception: what the clock has raised in it.
        """
        if self._error is not None:
            raise self._error
        if self.running:
            end, taken = self._mark(), waited[0]
            self._stretches.append((self._since, end))
            took = self._waited + taken - self._waited_before
            self._unread.append((self.sampled, self._ended, self._stretches, took))
            self._stack.clear()
            self._since, self._waited_before = end, taken
            self.sampled = self._every_step
        marked = len(self._ended)
        self._ended, self._stretches, self._waited = [], [], 0
        return marked

    def sample(self) -> None:
        """In the step that comes now everything is seen."""
        self.sampled = True

    def steps(self) -> Iterator[Step]:
        """The steps that the device is through with, once each."""
        while self._unread:
            stretches = self._unread[0][2]
            if not self._clock.reached(stretches[-1][1]):
                return
            yield self._read(*self._unread.popleft())

    def _read(self, sampled: bool, spans: list[_Span], stretches: list[tuple[Any, Any]], took: int) -> Step:
        step = Step(sum(self._clock.seconds(start, end) for start, end in stretches), sampled=sampled)
        if not sampled and not self.needs_data_marked:
            step.seconds[Phase.DATA] = took / 1e9
        inside: list[tuple[int, float]] = []
        """Spans that lie in none of those so far: which, and its seconds."""
        for number, (before, name, phase, start, end) in enumerate(spans):
            own = whole = self._clock.seconds(start, end)
            while inside and inside[-1][0] >= before:
                own -= inside.pop()[1]
            inside.append((number, whole))
            step.seconds[phase] += own
            if sampled and name == WAIT:
                step.waits.append((phase, whole))
            elif sampled and name in step.passes:
                step.passes[name].append(whole)
        return step


# ---- who marks ------------------------------------------------------------------------------------------------------


class Listener(Protocol):
    """Who hears of what begins and ends; :class:`Spans` is one."""

    def push(self, name: str) -> None: ...

    def pop(self, name: str) -> None: ...

    def begin_wait(self) -> bool: ...


listener: Listener | None = None
"""Who hears of waits and of batches: the spans of the training that this process runs."""


def listen(spans: Listener | None, *, waits: bool = True) -> None:
    """Report batches and, unless ``waits`` is false, waits to these spans from now on; to none with None."""
    global listener
    listener = spans
    _see_waits(spans is not None and waits)


_waits: list[Any] = []
"""``Work.wait`` as it was and what stands in its place, while it does."""


def _see_waits(see: bool) -> None:
    import torch

    if see == bool(_waits) or not torch.distributed.is_available():
        return
    work = torch._C._distributed_c10d.Work
    if not see:
        if vars(work)["wait"] is _waits[1]:  # not where somebody has put his own around it
            work.wait, _ = _waits
            _waits.clear()
        return
    wait = work.wait

    @wraps(wait)
    def seen(self: Any, *arguments: Any, **options: Any) -> Any:
        spans = listener
        if spans is None or not spans.begin_wait():
            return wait(self, *arguments, **options)
        try:
            return wait(self, *arguments, **options)
        finally:
            spans.pop(WAIT)

    _waits[:] = vars(work)["wait"], seen  # the first of which knows that it is a method
    work.wait = seen


class _Through:
    """Has what the loop's own timers have, where there are any (``inner``)."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if (inner := self.__dict__.get("inner")) is None:
            raise AttributeError(name)
        return getattr(inner, name)


class Timers(_Through):
    """What megatron-core calls as ``config.timers``: ``timers(name, log_level=k).start(); ... .stop()``.

    ``barrier=True`` is not followed: a barrier would make every rank wait for the slowest, which is what is to be measured.

    Args:
        spans: told of starts and stops.
        inner: the loop's own timers, which go on as before.
    """

    def __init__(self, spans: Listener, inner: Callable[..., Any] | None = None) -> None:
        self.spans, self.inner = spans, inner
        self._marks: dict[str, _Mark] = {}

    def __reduce__(self) -> Any:
        """What is copied or stored with a configuration are the loop's own timers."""
        return itself, (self.inner,)

    def __call__(self, name: str, log_level: int | None = None) -> Any:
        inner = self.inner(name, log_level=log_level) if self.inner is not None else None
        mark = self._marks.get(name)
        if mark is None or mark.inner is not inner:
            mark = self._marks[name] = _Mark(self.spans, name, inner)
        return mark


def itself(value: Any) -> Any:
    """What a pickled wrapper becomes."""
    return value


class _Mark(_Through):
    """One name of :class:`Timers`."""

    def __init__(self, spans: Listener, name: str, inner: Any) -> None:
        self.spans, self.name, self.inner = spans, name, inner

    def start(self, barrier: bool = False) -> None:
        if self.inner is not None:
            self.inner.start(barrier=barrier)
        self.spans.push(self.name)

    def stop(self, barrier: bool = False) -> None:
        self.spans.pop(self.name)
        if self.inner is not None:
            self.inner.stop(barrier=barrier)
