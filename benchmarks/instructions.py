"""Instructions of the callback in a step without log point, by cachegrind: a figure that no load disturbs.

The difference of two runs of many steps, less that of the same runs without callback, is what a step executes.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

from benchmarks.rows import Row, Unavailable

FEW, MANY = 300, 1500
"""Steps; two runs of the same differ by 5,000 instructions a step where the difference is below 1,000 steps."""
TARGET, GUARD = 100_000, 95_000
"""The goal, and just above the count today (180,000 once)."""


def loop(steps: int, callback: bool) -> None:
    """Events and two packed micro-batches a step."""
    import torch

    from benchmarks.adding import MODEL, packed
    from bridge.training.callbacks import CallbackContext, CallbackManager, ThroughputCallback

    torch.set_num_threads(1)
    state = SimpleNamespace(cfg=SimpleNamespace(model=SimpleNamespace(**MODEL)), train_state=SimpleNamespace(step=0))
    manager = CallbackManager([ThroughputCallback("exact", log_interval=10**9, peak_flops=1e30)] if callback else [])
    data = manager.observe(itertools.cycle([packed(8), packed(12)]))
    context = CallbackContext(state=state, model=[], user_state=manager.user_state, skipped_iter=False)
    manager.fire("on_train_start", context)
    for _ in range(steps):
        manager.fire("on_train_step_start", context)
        next(data), next(data)
        manager.fire("on_train_step_end", context)
        state.train_state.step += 1


def children() -> None:
    """One process for each loop, with all that was imported: its number of steps, whether with the callback, and its id."""
    loop(20, callback=True)
    for steps, callback in ((FEW, False), (MANY, False), (FEW, True), (MANY, True)):
        child = os.fork()
        if not child:
            loop(steps, callback)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("a loop failed")
        print(steps, int(callback), child, flush=True)


def instructions() -> dict[tuple[int, bool], int]:
    """Of a whole process with so many steps, with the callback or without; what came before it is in all of them."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable, "-m"]
    finished = subprocess.run(
        [*command, "benchmarks.instructions"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )
    found = dict(re.findall(r"==(\d+)== I +refs: +([\d,]+)", finished.stderr))
    loops = (line.split() for line in finished.stdout.splitlines())
    return {(int(steps), callback == "1"): int(found[child].replace(",", "")) for steps, callback, child in loops}


def rows() -> Iterator[Row]:
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind is not installed")
    found = instructions()
    with_it, without = ((found[MANY, on] - found[FEW, on]) / (MANY - FEW) for on in (True, False))
    note = "cachegrind; two packed micro-batches, no log point, no model"
    yield Row("instructions of the callback", with_it - without, "a step", TARGET, note, GUARD)


if __name__ == "__main__":
    children()
