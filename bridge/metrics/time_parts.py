"""Splits the seconds of a step into parts that add up: the work at the peak, and everything beyond it.

Waiting for batches is measured in every step, all else in sampled steps, which represent the others in proportion to their time
(:func:`_totals`).  Each rank sends sums of its spans (:class:`RankTimes`); like MFU, every number is a mean over the ranks.
Two parts cannot be measured on one rank alone:

- A collective ends for all ranks at about the same time, so of the time that a rank spends in it, the minimum over the ranks is
  communication and the rest is waiting for the last rank.  This compares each collective with the same one on the other ranks,
  in one step per interval, the last sample.  Ranks of one pipeline stage make the same calls.
- A pipeline stage waits because of the schedule's bubble, an imbalance of the stages, or transfers.  The passes of the sample are
  replayed without transfers (:mod:`bridge.metrics.pipeline_replay`); waiting beyond the replay's is transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from bridge.metrics.pipeline_replay import Durations, Replay, arranged, replay
from bridge.metrics.spans import BACKWARD, FORWARD, Phase, Step

PARTS = {
    "ideal": "the counted FLOPs at the device's peak; its share of the step time is the MFU",
    "padding": "the linear layers' FLOPs on padded positions, at the peak",
    "recompute": "forward passes that run again, at the peak",
    "kernels": "the time of forward and backward passes beyond the three above",
    "compute": "forward and backward passes; replaces the four parts above where no peak is known",
    "imbalance": "waiting for a slower rank, or a slower pipeline stage",
    "bubble": "waiting that the pipeline's schedule causes even with equal stages",
    "communication": "transfers between ranks that are not hidden by compute",
    "optimizer": "the optimizer's step without its waits",
    "data": "waiting for the next batch",
    "host": "the rest: Python, launches, logging",
}
"""The parts of a step in the order of a waterfall, and what they mean."""

#: The number of entries for the passes of a chunk, and for the waits of a phase; if there are more, neighbors share an entry.
PASSES_KEPT = 16
WAITS_KEPT = {Phase.COMPUTE_WAIT: 256, Phase.GRADIENTS_WAIT: 48, Phase.OTHER_WAIT: 16}
#: Integers of a stage: for each phase the number of waits, its negative, and the waits.
_WIDTH = sum(2 + kept for kept in WAITS_KEPT.values())
#: What ranks of other stages send: larger than any wait.
_NEVER = 1 << 62
_SUMS = (Phase.COMPUTE, Phase.DATA, Phase.PIPELINE, Phase.OPTIMIZER, Phase.COMPUTE_WAIT, Phase.GRADIENTS_WAIT, Phase.OTHER_WAIT)
_SAMPLED = (Phase.PIPELINE, Phase.COMPUTE_WAIT, Phase.GRADIENTS_WAIT, Phase.OTHER_WAIT)


@dataclass(frozen=True)
class TimeEntries:
    """The entries of all ranks' times; the same on every rank.

    Attributes:
        stages: number of pipeline stages.
        chunks: number of model chunks per stage.
    """

    stages: int = 1
    chunks: int = 1

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """Names of the summed integers: nanoseconds (``*_ns``) and counts."""
        return (
            "time_steps",
            "time_whole_ns",
            *(f"time_{phase.value}_ns" for phase in _SUMS),
            *(f"time_sample_{phase.value}_ns" for phase in _SAMPLED),
            *(name for stage in range(self.stages if self.stages > 1 else 0) for name in self._of_stage(stage)),
        )

    def _of_stage(self, stage: int) -> Iterable[str]:
        yield f"time_sampled[{stage}]"
        yield from (f"time_{way}_ns[{stage},{i}]" for way in ("forward", "backward") for i in range(self.passes))

    @property
    def passes(self) -> int:
        """Number of entries for the forward passes of a stage."""
        return PASSES_KEPT * self.chunks

    @property
    def minima(self) -> int:
        """Number of integers of which the minimum over all ranks is taken."""
        return self.stages * _WIDTH

    def is_mutual(self, phase: Phase) -> bool:
        """Whether all ranks of a stage wait together in this phase, collective by collective."""
        return phase in (Phase.COMPUTE_WAIT, Phase.GRADIENTS_WAIT) or (phase is Phase.OTHER_WAIT and self.stages == 1)


class RankTimes:
    """The integers that one rank sends for its steps.

    Args:
        shape: shape of all ranks' entries.
        stage: pipeline stage of this rank.
    """

    def __init__(self, shape: TimeEntries, stage: int = 0) -> None:
        self.shape, self.stage = shape, stage
        self._steps: list[Step] = []
        self.micro_batches = 0
        """Number of micro-batches in the newest sample."""
        self.lengths: list[float] = []
        """Seconds of each step that was sent last."""

    def add(self, steps: Iterable[Step]) -> None:
        """Add steps whose spans have been read."""
        self._steps += steps

    def take(self) -> tuple[list[int], list[int]] | None:
        """The integers to sum, and those to take the minimum of; None if no step since the last call is sampled."""
        steps, self._steps = self._steps, []
        sample = next((step for step in reversed(steps) if step.sampled), None)
        if sample is None:
            self._steps = steps
            return None
        self.lengths = [step.whole for step in steps]
        sums = [len(steps), _ns(sum(self.lengths)), *map(_ns, _totals(steps))]
        sums += [_ns(sample.seconds[phase]) for phase in _SAMPLED]
        if self.shape.stages > 1:
            sums += self._passes(sample)
        return sums, self._minima(sample)

    def _passes(self, sample: Step) -> list[int]:
        forward, backward = sample.passes[FORWARD], sample.passes[BACKWARD]
        chunks, passes = self.shape.chunks, self.shape.passes
        others = [0] * (1 + 2 * passes)
        try:
            times = arranged(self.stage, self.shape.stages, chunks, forward, backward)
        except ValueError:
            own = others
        else:
            self.micro_batches = len(forward) // chunks
            own = [1, *(_ns(value) for way in (True, False) for chunk in range(chunks) for value in _folded(times[way, chunk]))]
        return [value for stage in range(self.shape.stages) for value in (own if stage == self.stage else others)]

    def _minima(self, sample: Step) -> list[int]:
        own: list[int] = []
        for phase, kept in WAITS_KEPT.items():
            waits = [seconds for one, seconds in sample.waits if one is phase] if self.shape.is_mutual(phase) else []
            count = len(waits)
            if count > kept:
                waits = [sum(waits[_stretch(slot, count, kept)]) for slot in range(kept)]
            own += [count, -count, *map(_ns, waits), *[0] * (kept - len(waits))]
        others = [_NEVER] * _WIDTH
        return [value for stage in range(self.shape.stages) for value in (own if stage == self.stage else others)]


def _totals(steps: Sequence[Step]) -> list[float]:
    """Sums over the steps, in the order of ``_SUMS``: data as measured; the rest of the time is split as in the samples."""
    samples = [step for step in steps if step.sampled]
    data = sum(step.seconds[Phase.DATA] for step in steps)
    whole = sum(step.whole - step.seconds[Phase.DATA] for step in samples)
    scale = (sum(step.whole for step in steps) - data) / whole if whole > 0 else 0.0
    return [data if phase is Phase.DATA else scale * sum(step.seconds[phase] for step in samples) for phase in _SUMS]


def _ns(seconds: float) -> int:
    return max(0, round(1e9 * seconds))


def _folded(values: Sequence[float]) -> list[float]:
    """Means of neighbors, ``PASSES_KEPT`` of them."""
    return [sum(part) / len(part) if (part := values[_stretch(i, len(values), PASSES_KEPT)]) else 0.0 for i in range(PASSES_KEPT)]


def _unfolded(values: Sequence[float], count: int) -> list[float]:
    slots = [0] * count
    for slot in range(PASSES_KEPT):
        stretch = _stretch(slot, count, PASSES_KEPT)
        slots[stretch] = [slot] * (stretch.stop - stretch.start)
    return [values[slot] for slot in slots]


def _stretch(slot: int, count: int, slots: int) -> slice:
    """Which of ``count`` values share a slot; one value each if there are enough slots."""
    if count <= slots:
        return slice(min(slot, count), min(slot + 1, count))
    return slice(slot * count // slots, (slot + 1) * count // slots)


# ---- over all ranks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MeanStep:
    """Seconds per step, mean over the ranks.

    Attributes:
        step: from the end of one step to the end of the next, on each rank's own clock.
        compute: forward and backward passes without their waits.
        imbalance, bubble, communication, optimizer, data: see ``PARTS``.
    """

    step: float
    compute: float
    imbalance: float = 0.0
    bubble: float = 0.0
    communication: float = 0.0
    optimizer: float = 0.0
    data: float = 0.0


def measured(shape: TimeEntries, own: RankTimes, sums: Sequence[int], minima: Sequence[int], world_size: int) -> MeanStep | None:
    """The mean step from what all ranks sent; None if a rank sent nothing.

    Args:
        shape: shape of the entries.
        own: what this rank sent.
        sums: the sums over all ranks.
        minima: the minima over all ranks.
        world_size: number of ranks.
    """
    entry = dict(zip(shape.entries, sums, strict=True))
    steps = entry["time_steps"]
    if steps < world_size:
        return None
    mean = {phase: entry[f"time_{phase.value}_ns"] / steps / 1e9 for phase in _SUMS}
    sample = {phase: entry[f"time_sample_{phase.value}_ns"] / world_size / 1e9 for phase in _SAMPLED}
    imbalance = communication = bubble = 0.0
    for phase in filter(shape.is_mutual, WAITS_KEPT):
        least = _least(shape, phase, minima)
        transfer = mean[phase] if least is None else mean[phase] * min(1.0, _ratio(least, sample[phase]))
        communication += transfer
        imbalance += mean[phase] - transfer
    if shape.stages > 1:
        idle = mean[Phase.PIPELINE] + mean[Phase.OTHER_WAIT]
        found = _replayed(shape, own, entry) or Replay(0.0, 0.0, 0.0)
        waited = sample[Phase.PIPELINE] + sample[Phase.OTHER_WAIT]
        explained = found.bubble + found.imbalance
        scale = idle / max(waited, explained) if explained > 0 else 0.0
        bubble, uneven = found.bubble * scale, found.imbalance * scale
        imbalance += uneven
        communication += idle - bubble - uneven
    return MeanStep(
        step=entry["time_whole_ns"] / steps / 1e9,
        compute=mean[Phase.COMPUTE],
        imbalance=imbalance,
        bubble=bubble,
        communication=communication,
        optimizer=mean[Phase.OPTIMIZER],
        data=mean[Phase.DATA],
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _least(shape: TimeEntries, phase: Phase, minima: Sequence[int]) -> float | None:
    """Seconds of a step's collectives without waiting, mean over the stages; None if ranks of a stage made different calls."""
    before = sum(2 + kept for _, kept in takewhile(lambda item: item[0] is not phase, WAITS_KEPT.items()))
    found = 0.0
    for stage in range(shape.stages):
        start = stage * _WIDTH + before
        fewest, most, *waits = minima[start : start + 2 + WAITS_KEPT[phase]]
        if fewest != -most:
            return None
        found += sum(waits) / 1e9 / shape.stages
    return found


def _replayed(shape: TimeEntries, own: RankTimes, entry: Mapping[str, int]) -> Replay | None:
    """The replay of the pipeline from the mean times of each stage's ranks; None if not all stages sent theirs."""
    count = own.micro_batches
    durations: list[Durations] = []
    for stage in range(shape.stages):
        ranks = entry[f"time_sampled[{stage}]"]
        if not ranks or not count:
            return None
        times: dict[tuple[bool, int], list[float]] = {}
        for way, name in ((True, "forward"), (False, "backward")):
            values = [entry[f"time_{name}_ns[{stage},{i}]"] / ranks / 1e9 for i in range(shape.passes)]
            for chunk in range(shape.chunks):
                times[way, chunk] = _unfolded(values[chunk * PASSES_KEPT : (chunk + 1) * PASSES_KEPT], count)
        durations.append(times)
    return replay(durations)


def time_parts(
    step_time: float,
    found: MeanStep,
    *,
    ideal: float | None = None,
    padding: float | None = None,
    recompute: float | None = None,
) -> dict[str, float]:
    """Seconds of each of ``PARTS``, which add up to ``step_time``; empty if that is not positive.

    Args:
        step_time: mean seconds per step on the reporting rank. It differs from the mean rank's only by when the first and the
            last step began, so the mean rank's parts are scaled to it.
        found: what the ranks measured.
        ideal, padding, recompute: seconds of their FLOPs at the peak; None: unknown, and part of the rest.
    """
    if not step_time > 0 or not found.step > 0:
        return {}
    at_peak = {"ideal": ideal, "padding": padding, "recompute": recompute}
    known = {name: value for name, value in at_peak.items() if value is not None} if ideal is not None else {}
    seen = ("imbalance", "bubble", "communication", "optimizer", "data")
    parts = {name: getattr(found, name) * step_time / found.step for name in ("compute", *seen)}
    beyond = parts.pop("compute") - sum(known.values())
    parts = {**known, "kernels" if known else "compute": beyond, **parts}
    return {**parts, "host": step_time - sum(parts.values())}
