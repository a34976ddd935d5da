"""Combines a profiler's trace with a plan: seconds and FLOPs of each module, and its loss against the device's peak.

A trace is what ``torch.profiler`` exports: Chrome's trace events.  Ranges whose names begin with ``PREFIX`` name what runs: a
module's forward pass, or a phase of the step.  Backward passes have no ranges, but autograd numbers the operations that it will
differentiate; a backward operation belongs to the range in which the forward operation of its number ran.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bridge.flops.moments import Number

PREFIX = "bridge: "
"""The beginning of the names of ranges."""
STEP = "step"
"""The range of a whole step."""
FORWARD, BACKWARD, RECOMPUTE = "forward", "backward", "recompute"

_BACKWARD = "autograd::engine::evaluate_function: "
_NUMBER = "Sequence number"
_ON_DEVICE = frozenset(("kernel", "gpu_memcpy", "gpu_memset"))
_HOST_OPS = frozenset(("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"))
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")

Event = Mapping[str, Any]
#: FLOPs of the forward pass and of the backward pass.
PassFlops = tuple[Number, Number]


@dataclass
class Region:
    """One run of a range. Times are microseconds.

    Attributes:
        name: name of the module or phase.
        way: ``forward``, ``backward`` or ``recompute``.
        call: number of runs before it; for a module, the index of its micro-batch.
        start, end: times on the host.
        own: time between them, without the regions inside.
        kernels: (start, duration) of the kernels that it launched on the device.
    """

    name: str
    way: str
    call: int
    start: float
    end: float
    own: float
    kernels: list[tuple[float, float]] = field(default_factory=list)


def regions(events: Iterable[Event], repeats: Mapping[str, int] | None = None) -> list[Region]:
    """The regions of a trace in the order of their starts; ``repeats``: the number of modules, for names that several share."""
    found: list[Region] = []
    threads: dict[tuple[Any, Any], list[Region]] = defaultdict(list)
    numbered: dict[tuple[bool, int], Region] = {}
    calls: Counter[tuple[str, str]] = Counter()
    launched: dict[Any, Region] = {}
    kernels: list[Event] = []
    for event in sorted((e for e in events if e.get("ph") == "X"), key=lambda e: (e["ts"], -e["dur"])):
        if event.get("cat") in _ON_DEVICE:
            kernels.append(event)
        if event.get("cat") not in _HOST_OPS:
            continue
        stack = threads[event["pid"], event["tid"]]
        while stack and stack[-1].end <= event["ts"]:
            stack.pop()
        name, number = event["name"], event.get("args", {}).get(_NUMBER)
        again = any(region.way == BACKWARD for region in stack)
        if name.startswith(PREFIX):
            name, way = name.removeprefix(PREFIX), RECOMPUTE if again else FORWARD
            opened = _opened(name, way, calls[name, way] // (repeats or {}).get(name, 1), event, stack)
            calls[name, way] += 1
        elif name.startswith(_BACKWARD):
            # What a backward pass differentiates inside itself was recomputed there.
            if (of := numbered.get((again, number))) is None:
                continue
            opened = _opened(of.name, BACKWARD, of.call, event, stack)
        else:
            if stack and number is not None:
                numbered[again, number] = stack[-1]  # several operations may have it; the last one is differentiated
            if stack and "correlation" in event.get("args", {}):
                launched[event["args"]["correlation"]] = stack[-1]
            continue
        stack.append(opened)
        found.append(opened)
    for kernel in kernels:
        if (region := launched.get(kernel.get("args", {}).get("correlation"))) is not None:
            region.kernels.append((kernel["ts"], kernel["dur"]))
    return found


def _opened(name: str, way: str, call: int, event: Event, stack: Sequence[Region]) -> Region:
    start, length = event["ts"], event["dur"]
    if stack:
        stack[-1].own -= length
    return Region(name, way, call, start, start + length, length)


@dataclass
class ProfiledRow:
    """A module, with all layers together, or a phase of a step; over all steps.

    Attributes:
        name: name of the module, with ``*`` for the number of the layer.
        forward_seconds, backward_seconds, recompute_seconds: seconds on one rank: of kernels on a device, else of the host.
        forward_flops, backward_flops: FLOPs of all ranks that share its matmuls.
        ranks: number of these ranks.
        ideal_seconds: time of one rank's FLOPs at the peak; None if no peak is known.
    """

    name: str
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    recompute_seconds: float = 0.0
    forward_flops: Number = 0
    backward_flops: Number = 0
    ranks: int = 1
    ideal_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""
        return self.forward_seconds + self.backward_seconds + self.recompute_seconds

    @property
    def flops(self) -> Number:
        """FLOPs of both passes."""
        return self.forward_flops + self.backward_flops

    @property
    def rate(self) -> float | None:
        """FLOP/s of one rank; None if nothing was counted or nothing timed."""
        return float(self.flops) / self.ranks / self.seconds if self.flops and self.seconds else None

    @property
    def lost_seconds(self) -> float:
        """Seconds beyond the ideal."""
        return self.seconds - (self.ideal_seconds or 0.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {name: getattr(self, name) for name in ("seconds", "flops", "rate", "lost_seconds")}


def rows(
    found: Iterable[Region], work: Mapping[str, Sequence[PassFlops]], *, ranks: int = 1, peak: float | None = None
) -> list[ProfiledRow]:
    """Time and FLOPs of each module and phase, the largest loss first; without the steps themselves.

    Args:
        found: the regions of a trace.
        work: module -> FLOPs of each micro-batch, whether or not it was timed.
        ranks: number of ranks that share each matmul.
        peak: peak of one device in FLOP/s.
    """
    found = [region for region in found if region.name != STEP]
    on_device = any(region.kernels for region in found)
    table: dict[str, ProfiledRow] = {}

    def row(name: str) -> ProfiledRow:
        stem = _LAYER.sub("*", name)
        return table.setdefault(stem, ProfiledRow(stem, ranks=ranks))

    for region in found:
        attribute = f"{region.way}_seconds"
        one = row(region.name)
        setattr(one, attribute, getattr(one, attribute) + _seconds(region, on_device))
    for name, each in work.items():
        one = row(name)
        one.forward_flops += sum(forward for forward, _ in each)
        one.backward_flops += sum(backward for _, backward in each)
    for one in table.values():
        one.ideal_seconds = float(one.flops) / ranks / peak if peak else None
    return sorted(table.values(), key=lambda one: -one.lost_seconds)


def _seconds(region: Region, on_device: bool) -> float:
    return (sum(length for _, length in region.kernels) if on_device else region.own) / 1e6


def with_flops(
    found: Sequence[Region], work: Mapping[str, Sequence[PassFlops]], *, ranks: int = 1, peak: float | None = None
) -> list[dict[str, Any]]:
    """Trace events of the modules' passes with their FLOPs as arguments: tracks to show beside the profiler's in Perfetto."""
    on_device = any(region.kernels for region in found)
    passes: dict[tuple[str, str, int], list[Region]] = defaultdict(list)
    for region in found:
        if region.name in work and region.call < len(work[region.name]):
            passes[region.way, region.name, region.call].append(region)
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": _TRACK, "args": {"name": "modules, with FLOPs"}}]
    events += [
        {"ph": "M", "name": "thread_name", "pid": _TRACK, "tid": way, "args": {"name": way}}
        for way in (FORWARD, BACKWARD, RECOMPUTE)
    ]
    for (way, name, call), parts in passes.items():
        flops = float(work[name][call][way == BACKWARD]) / ranks
        start, end = _extent(parts, on_device)
        seconds = sum(_seconds(region, on_device) for region in parts)
        rate = flops / seconds if seconds else 0.0
        counted = {"FLOPs": flops, "TFLOP/s": rate / 1e12, "micro-batch": call, "own milliseconds": 1e3 * seconds}
        share = {"of the peak": rate / peak} if peak else {}
        where = {"pid": _TRACK, "tid": way, "ts": start, "dur": end - start}
        events.append({"ph": "X", "cat": "bridge", "name": name, **where, "args": {**counted, **share}})
    return events


_TRACK = "bridge"


def _extent(parts: Sequence[Region], on_device: bool) -> tuple[float, float]:
    kernels = [(start, start + length) for region in parts for start, length in region.kernels]
    spans = kernels if on_device and kernels else [(region.start, region.end) for region in parts]
    return min(start for start, _ in spans), max(end for _, end in spans)
