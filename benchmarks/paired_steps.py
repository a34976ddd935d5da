"""What the callback takes inside real steps of two ranks: on and off drawn for each step, in pairs, in one training.

Processor time of the training thread.  Steps are of six kinds (a log point, the step that starts its sum, the one that finds it,
the one that publishes its row, the step that compute time is taken in, any other), weighted by how often each comes.  It is
measured twice: summed up over everything through which a loop enters the callback (events, batches, hooks, marks), which a busy
machine can resolve; and as the difference from the steps without callback, which has what the callback slows down elsewhere.  The
threads that make sums and rows stand apart.  The intervals are a bootstrap's.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

STEPS = int(os.environ.get("BENCH_STEPS", "800"))
WARM_UP = 24
INTERVAL = 10
TARGET_US = 150.0
"""0.3% of a step of 50 ms."""
OFF, OTHER, SAMPLED = "off", "other", "sampled"
LOGGING = ("log", "send", "receive", "publish")
"""A log point, and the steps after it."""
OPTIONS = (
    "data.max_documents=600",
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.ffn_hidden_size=128",
    "model.seq_length=128",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "logger.wandb_project=null",
    f"logger.log_interval={INTERVAL}",
    f"train.train_iters={STEPS}",
)


class Inside:
    """Processor time of this thread inside some functions, those that they call among them counted once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0
        self.by_name: dict[str, float] = defaultdict(float)
        spent = [self._of(lambda: None, "nothing") for _ in range(2000)]
        for call in spent:
            call()
        self._cost = self.seconds / len(spent)
        self.reset()

    def reset(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self.by_name.clear()

    def net(self) -> float:
        """Without the clock's own share."""
        return self.seconds - self.calls * self._cost

    def watch(self, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._of(getattr(owner, name), f"{owner.__name__}.{name}"))

    def _of(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self._depth:
                return function(*arguments, **options)
            self._depth, start = 1, time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.thread_time() - start
                self._depth, self.seconds, self.calls = 0, self.seconds + spent, self.calls + 1
                self.by_name[name] += spent

        return timed


def watched() -> Inside:
    """All through which a loop enters the callback."""
    from bridge.metrics.spans import Spans, Timers
    from bridge.metrics.stragglers import ComputeTimer
    from bridge.training.callbacks import ThroughputCallback

    inside = Inside()
    inside.watch(ThroughputCallback, "on_train_step_start", "on_train_step_end", "_count")
    inside.watch(ComputeTimer, "_enter_forward", "_leave_forward", "_enter_backward", "_leave")
    inside.watch(Spans, "push", "pop", "begin_wait")
    inside.watch(Timers, "__call__")
    return inside


def arms() -> Iterator[bool]:
    """On and off in pairs of random order, the same on every rank."""
    draw = random.Random(7)
    while True:
        pair = [True, False]
        draw.shuffle(pair)
        yield from pair


class Switched:
    """A throughput callback that is on in half of the steps; those are all the steps it knows of."""

    def __init__(self) -> None:
        from bridge.metrics.meter import Meter
        from bridge.training.callbacks import ThroughputCallback

        self.inside, self.rows, self.sums = watched(), Inside(), Inside()
        self.rows.watch(ThroughputCallback, "_row")
        self.sums.watch(Meter, "_pack")
        self.callback = ThroughputCallback("exact", peak_flops=1e12)
        self.arms, self.on, self.steps = arms(), True, 0
        self.taken: list[tuple[str, float, float]] = []
        self.parts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def observe(self, data_iterator: Any) -> Iterator[Any]:
        observed = self.callback.observe(data_iterator)
        while True:
            yield next(observed if self.on else data_iterator)

    def on_train_start(self, context: Any) -> None:
        from bridge.metrics.host import Host, host_of
        from bridge.training.callbacks import CallbackContext

        host = host_of(context.state, context.model)
        own = Host(**{**vars(host), "step": lambda: self.steps})
        self.context = CallbackContext(state=own, model=context.model, user_state=context.user_state, skipped_iter=False)
        self.callback.on_train_start(self.context)

    def on_train_step_start(self, context: Any) -> None:
        self.on = next(self.arms)
        self.kind = self._kind() if self.on else OFF
        self.inside.reset()
        self.start = time.thread_time()
        if self.on:
            self.callback.on_train_step_start(self.context)

    def on_train_step_end(self, context: Any) -> None:
        if self.on:
            self.callback.on_train_step_end(self.context)
            self.steps += 1
        self.taken.append((self.kind, time.thread_time() - self.start, self.inside.net()))
        for name, spent in self.inside.by_name.items():
            self.parts[self.kind][name].append(spent)

    def _kind(self) -> str:
        if self.callback._meter is not None and self.callback._meter._part == "sampled":
            return SAMPLED
        since = (self.steps + 1) % INTERVAL
        return LOGGING[since] if since < len(LOGGING) else OTHER

    def on_train_end(self, context: Any) -> None:
        self.callback.on_train_end(self.context)
        own, beside = self.callback.latest["throughput/overhead_ms"], (self.rows.net() + self.sums.net()) / self.steps
        file = Path(os.environ["BENCH_FOLDER"], f"{os.environ['RANK']}.json")
        file.write_text(json.dumps({"taken": self.taken[WARM_UP:], "own": own, "beside": beside, "parts": self.parts}))


def estimate(taken: Mapping[str, Sequence[float]]) -> float:
    """Microseconds a step, of seconds by kind of step; those without callback are subtracted where they are there."""
    middle = {kind: statistics.median(times) for kind, times in taken.items()}
    rare = [kind for kind in (*LOGGING, SAMPLED) if kind in middle]
    weights = dict.fromkeys(rare, 1 / INTERVAL) | {OTHER: 1 - len(rare) / INTERVAL}
    return sum(1e6 * weight * (middle[kind] - middle.get(OFF, 0.0)) for kind, weight in weights.items())


def interval(taken: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Of 95%."""
    draw = random.Random(1)
    again = sorted(estimate({kind: draw.choices(times, k=len(times)) for kind, times in taken.items()}) for _ in range(400))
    return again[10], again[389]


def measure(batching: str) -> list[dict[str, Any]]:
    """What each rank took."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        options = [*OPTIONS, f"data.batching={batching}", f"logger.dir={folder}"]
        finished = subprocess.run(
            [*launch, "-m", "benchmarks.paired_steps", *options],
            env={**os.environ, "BENCH_FOLDER": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(finished.stderr[-2000:])
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


def rows() -> Iterator[Row]:
    for batching in ("packed", "fixed"):
        for rank, found in enumerate(measure(batching)):
            whole: dict[str, list[float]] = defaultdict(list)
            inside: dict[str, list[float]] = defaultdict(list)
            for kind, seconds, own in found["taken"]:
                whole[kind].append(seconds)
                if kind != OFF:
                    inside[kind].append(own)
            where = f"{batching}, rank {rank}"
            (low, high), value = interval(inside), estimate(inside)
            kinds = ", ".join(f"{kind} {1e6 * statistics.median(times):.0f}" for kind, times in sorted(inside.items()))
            note = f"95% interval {low:.0f} to {high:.0f}; {value / 500:.2f}% of 50 ms; {kinds}"
            yield Row(f"inside the callback in steps of two ranks, {where}", value, "us/step", TARGET_US, note)
            (low, high), step = interval(whole), 1e3 * statistics.median(whole[OFF])
            note = f"95% interval {low:.0f} to {high:.0f}; these steps {step:.0f} ms"
            yield Row(f"steps with less those without, {where}", estimate(whole), "us/step", None, note)
            yield Row(f"by its own clock, {where}", 1e3 * found["own"], "us/step")
            yield Row(f"in the threads that make sums and rows, {where}", 1e6 * found["beside"], "us/step")


if __name__ == "__main__":
    from bridge.config import load_recipe
    from bridge.training.loop import train

    sys.modules["benchmarks.paired_steps"] = sys.modules["__main__"]
    cfg = load_recipe("tiny", sys.argv[1:])
    cfg.callbacks = [{"_target_": "benchmarks.paired_steps.Switched"}]
    sys.exit(train(cfg))
