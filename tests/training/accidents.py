"""Callbacks that do to a training what happens in a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from bridge.training.callbacks import Callback, CallbackContext


class Accident(Callback):
    """Something that happens to one rank when a step ends.

    Args:
        steps: the step in which it happens to the workers that torchrun starts first, to those it starts next, and so on.
        rank: whom it befalls.
    """

    def __init__(self, steps: Sequence[int], rank: int = 1) -> None:
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.step = steps[attempt] if attempt < len(steps) else None
        self.rank = rank

    def on_train_step_end(self, context: CallbackContext) -> None:
        if (context.state.step, context.state.groups.rank) == (self.step, self.rank):
            self.happen()

    def happen(self) -> None:
        raise NotImplementedError


class Killed(Accident):
    """As by the kernel when memory is short."""

    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class CutOff(Accident):
    """The machine (a network namespace) loses its network."""

    def __init__(self, link: str, steps: Sequence[int], rank: int = 1) -> None:
        super().__init__(steps, rank)
        self.link = link

    def happen(self) -> None:
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)
