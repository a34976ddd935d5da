"""A few training steps under ``torch.profiler``, compared with the plan: the work of each module and its speed.

A callback on the first rank marks every module, under the plan's names, and the phases of a step as ranges.  After the last step
it writes the trace to ``trace.json.gz`` and the table to ``profile.json``.  :mod:`bridge.metrics.profiled` explains the meaning
of a trace.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bridge.flops import compile_plan
from bridge.flops.plan import Plan
from bridge.flops.terms import Term
from bridge.metrics import profiled, spans
from bridge.metrics.batch_lengths import read_lengths
from bridge.metrics.batch_statistics import BatchStatistics
from bridge.metrics.observed import are_chunks, observed
from bridge.metrics.peak import DevicePeak, device_peak
from bridge.metrics.profiled import PREFIX, STEP, PassFlops
from bridge.metrics.time_marks import mark
from bridge.metrics.vector import VectorLayout
from bridge.training.callbacks.events import Callback, CallbackContext
from bridge.training.trainable import global_names, plan_path

TRACE, TABLE = "trace.json.gz", "profile.json"


class ProfileCallback(Callback):
    """Profiles steps of our loop.

    Args:
        folder: the output folder.
        steps: number of profiled steps.
        warm_up: number of steps before them.
        convention: how FLOPs are counted.
    """

    def __init__(self, folder: str, steps: int = 3, warm_up: int = 3, convention: str = "exact") -> None:
        self._folder, self._steps, self._warm_up, self._convention = Path(folder), steps, warm_up, convention
        self._ranges = Ranges()
        self._undo: list[Callable[[], None]] = []
        self._profiler: profile | None = None
        self._plan: Plan | None = None
        self._batches: list[Any] = []

    def observe(self, data: Any) -> Any:
        """The same data, of which the batches of profiled steps are kept."""
        if are_chunks(data):
            return [self.observe(data[0]), *(observed(one, lambda batch, waited: None) for one in data[1:])]
        return observed(data, self._keep)

    def _keep(self, batch: Any, waited: int) -> None:
        if self._profiler is not None:
            self._batches.append(batch)

    def on_train_start(self, context: CallbackContext) -> None:
        """Hook the modules and phases of the first rank."""
        if not context.state.groups.writes:
            return
        self._plan = compile_plan(context.state.cfg, self._convention)
        chunks = list(context.model)
        self._modules = {path for chunk in chunks for path, _ in _modules(chunk)}
        self._terms = self._by_module(context.state.groups.pipeline_size)
        self._repeats: Counter[str] = Counter()
        for chunk in chunks:
            for path, module in _modules(chunk):
                if _within(path, self._terms) == path:
                    self._repeats[path] += 1
                    self._undo += _hook(self._ranges, PREFIX + path, module)
        self._undo += mark(self._ranges, chunks, context.optimizer)

    def _by_module(self, stages: int) -> dict[str, list[Term]]:
        assert self._plan is not None
        found: dict[str, list[Term]] = defaultdict(list)
        for term in self._plan.terms:
            module = _module_of(term, self._modules) or (term.path if stages == 1 else "")
            if module:
                found[module].append(term)
        return found

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Start the profiler at the first step after the warm-up."""
        if self._plan is None:
            return
        if context.state.step == self._warm_up:
            _settle(context.state.device)
            on_gpu = [ProfilerActivity.CUDA] if context.state.device.type == "cuda" else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profiler.start()
            spans.listen(self._ranges)
        if self._profiler is not None:
            self._ranges.open(PREFIX + STEP)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Stop the profiler after the last step and write its files."""
        if self._profiler is None:
            return
        self._ranges.close(PREFIX + STEP)
        if context.state.step == self._warm_up + self._steps:
            _settle(context.state.device)
            self._profiler.stop()
            profiler, self._profiler = self._profiler, None
            spans.listen(None)
            for undo in self._undo:
                undo()
            self._write(profiler, context)

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def _write(self, profiler: profile, context: CallbackContext) -> None:
        plan, state, path = self._plan, context.state, self._folder / TRACE
        assert plan is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        trace = json.loads(gzip.decompress(path.read_bytes()))
        vectors = self._vectors(plan)
        totals = [sum(vector[place] for vector in vectors) for place in range(len(plan.statistics))]
        work = self._work(plan, vectors)
        peak = _peak(state, plan)
        ranks = state.groups.tensor_size * state.groups.context_size
        found = profiled.regions(trace["traceEvents"], self._repeats)
        trace["traceEvents"] += profiled.with_flops(found, work, ranks=ranks, peak=peak.flops)
        path.write_bytes(gzip.compress(json.dumps(trace).encode(), 5))
        steps = [region for region in found if region.name == STEP]
        table = {
            "name": state.cfg.name,
            "device": peak.device,
            "number_format": peak.number_format,
            "peak_flops": peak.flops,
            "peak_source": peak.source,
            "convention": plan.convention,
            "steps": len(steps),
            "micro_batches": len(vectors),
            "seconds": sum(region.end - region.start for region in steps) / 1e6,
            "flops": plan.evaluate(totals),
            "ranks": ranks,
            "not_counted": list(plan.not_counted),
            "trace": str(path),
            "rows": [row.to_dict() for row in profiled.rows(found, work, ranks=ranks, peak=peak.flops)],
        }
        (self._folder / TABLE).write_text(json.dumps(table, indent=1, default=float))

    def _vectors(self, plan: Plan) -> list[list[int]]:
        """The plan's statistics of each micro-batch."""
        sums, vectors = BatchStatistics(VectorLayout(plan.statistics)), []
        for batch in self._batches:
            if (lengths := read_lengths(batch, images=sums.needs_images)) is not None:
                sums.add(lengths)
            vectors.append(sums.drain()[0][: len(plan.statistics)])
        return vectors

    def _work(self, plan: Plan, vectors: Sequence[Sequence[int]]) -> dict[str, list[PassFlops]]:
        """FLOPs of each module in each micro-batch; modules without any are left out."""
        found: dict[str, list[PassFlops]] = {}
        for module, terms in self._terms.items():
            part = plan.with_terms(terms, ())
            places = [plan.statistics.index(statistic) for statistic in part.statistics]
            each: list[PassFlops] = []
            for vector in vectors:
                own = [vector[place] for place in places]
                forward, whole = (part.evaluate(own, passes) for passes in ("forward", "training"))
                each.append((forward, whole - forward))
            if any(map(any, each)):
                found[module] = each
        return found


class Ranges:
    """Nested, named ranges of the profiler, separately for each thread."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def open(self, name: str) -> None:
        """Begin a range."""
        record = record_function(name)
        record.__enter__()
        self._stack.append((name, record))

    def close(self, name: str) -> None:
        """End a range, and any range inside it that is still open; does nothing if it is not open."""
        stack = self._stack
        while any(opened == name for opened, _ in stack):
            opened, record = stack.pop()
            record.__exit__(None, None, None)
            if opened == name:
                return

    @property
    def _stack(self) -> list[tuple[str, Any]]:
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        stack: list[tuple[str, Any]] = self._threads.stack
        return stack

    # The interface of a listener to the phases of a step; other names are ignored.

    def push(self, name: str) -> None:
        """Begin a phase."""
        if name in spans.PHASES:
            self.open(PREFIX + name)

    def pop(self, name: str) -> None:
        """End a phase."""
        self.close(PREFIX + name)

    def begin_wait(self) -> bool:
        """Begin waiting for other ranks."""
        self.open(PREFIX + spans.WAIT)
        return True


def _modules(chunk: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """(path in a plan, module) for every module of the model, without its wrappers."""
    place = global_names(chunk)
    for name, module in chunk.named_modules():
        path = plan_path(place(name))
        if path not in ("", "module"):
            yield path, module


def _module_of(term: Term, modules: set[str]) -> str | None:
    """The module that computes a term; None if this rank has none."""
    above = term.path.rpartition(".")[0]
    candidates = (term.path, f"{above}.{term.component}", above, above.rpartition(".")[0])
    return next((path for path in candidates if path in modules), None)


def _within(path: str, owners: dict[str, list[Term]]) -> str:
    """The innermost module at or around a path that computes terms; the path itself if there is none."""
    around = path
    while around and around not in owners:
        around = around.rpartition(".")[0]
    return around or path


def _hook(ranges: Ranges, name: str, module: torch.nn.Module) -> Iterator[Callable[[], None]]:
    yield module.register_forward_pre_hook(lambda *_: ranges.open(name)).remove
    yield module.register_forward_hook(lambda *_: ranges.close(name), always_call=True).remove


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(state: Any, plan: Plan) -> DevicePeak:
    hardware = state.cfg.hardware
    return device_peak(
        plan.formats.on(state.number_format).name,
        device_name=hardware.device_name,
        configured=hardware.peak_flops,
        device=state.device,
    )
