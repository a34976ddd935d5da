"""Nested spans of a step.  Each counts without the spans inside it, so that together they are the whole step.

The names are those that megatron-core passes to ``config.timers``, and ``data`` (the next batch is fetched) and ``wait``
(``torch.distributed`` waits for other ranks: every blocking collective does so in ``Work.wait``).  A name belongs to a
:class:`Phase`; the phase of a wait depends on the phase it occurs in.

In most steps only the end of the step and, on a GPU, the fetching of batches is marked; all else is marked in sampled steps.
On a CPU the time for batches is known without marks.

Marks come from a clock (:mod:`bridge.metrics.timing`): on a CPU the host's, on a GPU events in the current stream.  Nothing
waits for these: a step is read once the device has finished it.
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
"""The names that are spans; others belong to the span around them."""

WAITS = {
    Phase.COMPUTE: Phase.COMPUTE_WAIT,
    Phase.GRADIENTS: Phase.GRADIENTS_WAIT,
    Phase.PIPELINE: Phase.PIPELINE,
    Phase.DATA: Phase.DATA,
}
"""The phase of a wait, by the phase around it; anywhere else it is :attr:`Phase.OTHER_WAIT`."""


_NOTHING = dict.fromkeys(Phase, 0.0)


@dataclass
class Step:
    """The seconds of one step of this rank.

    Attributes:
        whole: seconds since the end of the step before, without pauses.
        seconds: by phase, without the spans inside; unless the step is sampled, for data alone.
        sampled: whether everything was marked.
        waits: (phase, seconds) of each wait in the order of the calls; in a sampled step.
        passes: seconds of each forward and each backward pass in order, with the spans inside; in a sampled step.
    """

    whole: float = 0.0
    seconds: dict[Phase, float] = field(default_factory=_NOTHING.copy)
    sampled: bool = False
    waits: list[tuple[Phase, float]] = field(default_factory=list)
    passes: dict[str, list[float]] = field(default_factory=lambda: {FORWARD: [], BACKWARD: []})


#: Nanoseconds that loaders have taken in this process; each fetched batch adds to it.
waited = [0]

#: A span that ended: how many had ended when it began, name, phase, start, end. The spans that ended since are inside it.
_Span = tuple[int, str, Phase, Any, Any]


class Spans:
    """The spans of one rank.

    Args:
        clock: makes the marks.
        every_step: whether every step is sampled.
    """

    def __init__(self, clock: Clock, *, every_step: bool = False) -> None:
        self._clock, self._mark = clock, clock.mark
        self._every_step = every_step
        self._thread = threading.get_ident()
        self.running = False
        """Whether training continues."""
        self._error: Exception | None = None
        self.sampled = every_step
        """Whether everything is marked in the step that runs now."""
        self._stack: list[tuple[str, Phase, int, Any]] = []
        self._ended: list[_Span] = []
        self.needs_data_marked = not isinstance(clock, HostClock)
        """Whether batches are marked in every step, because a device may not have waited as long as the host."""
        self._since: Any = None
        self._stretches: list[tuple[Any, Any]] = []
        self._waited_before = self._waited = 0
        """Nanoseconds that loaders took: before this stretch, and in the earlier stretches of the step."""
        self._unread: deque[tuple[bool, list[_Span], list[tuple[Any, Any]], int]] = deque()

    # ---- in the step ------------------------------------------------------------------------------------------------

    def push(self, name: str) -> None:
        """A span begins. Names that are not spans are ignored."""
        if self.running and (self.sampled or name == DATA) and (phase := PHASES.get(name)) is not None:
            self._open(name, phase)

    def pop(self, name: str) -> None:
        """A span ends, with the spans inside it that an exception has left open. Ignored if it has not begun."""
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
        """The clock has failed; the error is raised at the end of the step, so not within a pass."""
        self.running, self._error = False, error
        self._stack.clear()

    def begin_wait(self) -> bool:
        """A wait begins, unless it is inside another wait or the step is not sampled. Returns whether it does."""
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
        """Number of steps that were not read yet."""
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
            The number of spans that ended in it.

        Raises:
            Exception: what the clock raised in it.
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
        """In the step that begins now everything is marked."""
        self.sampled = True

    def steps(self) -> Iterator[Step]:
        """The steps that the device has finished, each of them once."""
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
        """Outermost spans so far: number and seconds."""
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
    """Is called when spans begin and end; :class:`Spans` is one."""

    def push(self, name: str) -> None: ...

    def pop(self, name: str) -> None: ...

    def begin_wait(self) -> bool: ...


listener: Listener | None = None
"""The listener for waits and batches: the spans of the training that this process runs."""


def listen(spans: Listener | None, *, waits: bool = True) -> None:
    """From now on report batches, and waits if ``waits``, to these spans; None: report to none."""
    global listener
    listener = spans
    _see_waits(spans is not None and waits)


_waits: list[Any] = []
"""The original ``Work.wait`` and its replacement, while it is replaced."""


def _see_waits(see: bool) -> None:
    import torch

    if see == bool(_waits) or not torch.distributed.is_available():
        return
    work = torch._C._distributed_c10d.Work
    if not see:
        if vars(work)["wait"] is _waits[1]:  # not if another library has wrapped it since
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

    _waits[:] = vars(work)["wait"], seen  # the descriptor, so that it can be put back
    work.wait = seen


class _Through:
    """Passes every other attribute on to the loop's own timers (``inner``), if there are any."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if (inner := self.__dict__.get("inner")) is None:
            raise AttributeError(name)
        return getattr(inner, name)


class Timers(_Through):
    """What megatron-core calls as ``config.timers``: ``timers(name, log_level=k).start(); ... .stop()``.

    ``barrier=True`` causes no barrier here: one would make every rank wait for the slowest, and that wait is to be measured.

    Args:
        spans: is called at starts and stops.
        inner: the loop's own timers, which are called as before.
    """

    def __init__(self, spans: Listener, inner: Callable[..., Any] | None = None) -> None:
        self.spans, self.inner = spans, inner
        self._marks: dict[str, _Mark] = {}

    def __reduce__(self) -> Any:
        """A copied or pickled configuration has the loop's own timers."""
        return itself, (self.inner,)

    def __call__(self, name: str, log_level: int | None = None) -> Any:
        inner = self.inner(name, log_level=log_level) if self.inner is not None else None
        mark = self._marks.get(name)
        if mark is None or mark.inner is not inner:
            mark = self._marks[name] = _Mark(self.spans, name, inner)
        return mark


def itself(value: Any) -> Any:
    """The value; a wrapper's ``__reduce__`` returns it, so that the wrapped object is pickled."""
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
